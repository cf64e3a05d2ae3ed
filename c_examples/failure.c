/*
 * A rank dies in the middle of a job, and the others go on without it.
 *
 *   cc failure.c $(pkg-config --cflags --libs graccl) -o failure
 *   torchrun or mpirun end the whole job when a rank dies, so start the ranks by hand:
 *   for r in 0 1 2 3; do RANK=$r WORLD_SIZE=4 LOCAL_RANK=$r MASTER_ADDR=127.0.0.1 \
 *       MASTER_PORT=29500 ./failure & done; wait
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <graccl.h>

#define CHECK(call)                                                        \
    do {                                                                   \
        if ((call) != GRACCL_SUCCESS) {                                    \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__,             \
                    graccl_last_error(NULL));                              \
            exit(EXIT_FAILURE);                                            \
        }                                                                  \
    } while (0)

enum { STEPS = 10, FATAL = 4, COUNT = 1000 };

/*
 * Somebody is gone. The survivors make a communicator of those that answer; nobody has to know who died.
 * The gradient is undefined now. Some survivors may have finished the step that failed here, so all go on
 * from the state of one that is furthest.
 */
static graccl_comm_t *without_the_dead(graccl_comm_t *comm, int *step, float *weights)
{
    graccl_comm_t *smaller;
    int rank, size, furthest;
    CHECK(graccl_comm_shrink(comm, NULL, 0, &smaller, NULL));
    CHECK(graccl_comm_destroy(comm));
    CHECK(graccl_comm_rank(smaller, &rank));
    CHECK(graccl_comm_size(smaller, &size));
    furthest = *step * size + rank;
    CHECK(graccl_all_reduce(&furthest, &furthest, 1, GRACCL_INT32, GRACCL_MAX, smaller));
    *step = furthest / size;
    CHECK(graccl_broadcast(weights, weights, COUNT, GRACCL_FLOAT32, furthest % size, smaller));
    return smaller;
}

int main(void)
{
    graccl_comm_t *comm;
    int rank, size, left;
    static float weights[COUNT], gradient[COUNT];

    CHECK(graccl_comm_init_env(&comm));
    CHECK(graccl_comm_rank(comm, &rank));
    CHECK(graccl_comm_size(comm, &size));
    left = size;

    int step = 0; /* steps done */
    while (step < STEPS) {
        if (step == FATAL && size > 1 && rank == size - 1) {
            printf("rank %d of %d: dies\n", rank, size);
            fflush(stdout);
            _exit(EXIT_SUCCESS); /* as if killed: nothing is said to the others */
        }
        for (int i = 0; i < COUNT; i++) gradient[i] = 1;
        graccl_result_t result =
            graccl_all_reduce(gradient, gradient, COUNT, GRACCL_FLOAT32, GRACCL_SUM, comm);
        if (result == GRACCL_REMOTE_ERROR) {
            comm = without_the_dead(comm, &step, weights);
            CHECK(graccl_comm_size(comm, &left));
            continue;
        }
        CHECK(result);
        for (int i = 0; i < COUNT; i++) weights[i] += gradient[i] / (float)left;
        step++;
    }

    /* Each step added the mean of ones, whoever was there. */
    for (int i = 0; i < COUNT; i++) {
        if (weights[i] != STEPS) {
            fprintf(stderr, "rank %d: weights[%d] is %g\n", rank, i, weights[i]);
            return EXIT_FAILURE;
        }
    }
    if (left != (size > 1 ? size - 1 : 1)) {
        fprintf(stderr, "rank %d: %d ranks are left of %d\n", rank, left, size);
        return EXIT_FAILURE;
    }
    CHECK(graccl_barrier(comm));
    CHECK(graccl_comm_destroy(comm));
    printf("rank %d of %d: ok\n", rank, size);
    return EXIT_SUCCESS;
}
