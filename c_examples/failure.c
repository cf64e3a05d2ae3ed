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

int main(void)
{
    graccl_comm_t *comm;
    int rank, size, left;
    static float weights[COUNT], gradient[COUNT];

    CHECK(graccl_comm_init_env(&comm));
    CHECK(graccl_comm_rank(comm, &rank));
    CHECK(graccl_comm_size(comm, &size));
    left = size;

    for (int step = 0; step < STEPS; step++) {
        if (step == FATAL && size > 1 && rank == size - 1) {
            printf("rank %d of %d: dies\n", rank, size);
            fflush(stdout);
            _exit(EXIT_SUCCESS); /* as if killed: nothing is said to the others */
        }
        for (int i = 0; i < COUNT; i++) gradient[i] = 1;
        graccl_result_t result =
            graccl_all_reduce(gradient, gradient, COUNT, GRACCL_FLOAT32, GRACCL_SUM, comm);

        if (result == GRACCL_REMOTE_ERROR) {
            /*
             * Somebody is gone. The survivors make a communicator of those that answer; nobody has to
             * know who died. The gradient is undefined now, so the step is done again. (A rank that
             * had finished the step before the others noticed would redo it, too: real programs keep
             * the number of their step with their weights and agree on it here.)
             */
            graccl_comm_t *smaller;
            CHECK(graccl_comm_shrink(comm, NULL, 0, &smaller, NULL));
            CHECK(graccl_comm_destroy(comm));
            comm = smaller;
            CHECK(graccl_comm_size(comm, &left));
            step--;
            continue;
        }
        CHECK(result);
        for (int i = 0; i < COUNT; i++) weights[i] += gradient[i] / (float)left;
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
