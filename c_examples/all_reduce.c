/*
 * An allreduce in C: every rank contributes a vector, every rank gets the sum.
 *
 *   cc all_reduce.c $(pkg-config --cflags --libs graccl) -o all_reduce
 *   graccl run -n 4 -- ./all_reduce        (or: mpirun -n 4 ./all_reduce, torchrun, srun)
 *
 * Started alone it is a job of one rank.
 */
#include <stdio.h>
#include <stdlib.h>

#include <graccl.h>

/*
 * On an error: print what went wrong, who it concerns and what to do, and end this process. The other
 * ranks notice within about a second and get GRACCL_REMOTE_ERROR.
 */
#define CHECK(call)                                                        \
    do {                                                                   \
        if ((call) != GRACCL_SUCCESS) {                                    \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__,             \
                    graccl_last_error(NULL));                              \
            exit(EXIT_FAILURE);                                            \
        }                                                                  \
    } while (0)

/* Rank r contributes r + i % 100 at place i: small integers, so that float sums are exact. */
static void fill(float *data, size_t count, int rank)
{
    for (size_t i = 0; i < count; i++) {
        data[i] = (float)rank + (float)(i % 100);
    }
}

/* The sum over all ranks is size * (i % 100) + (0 + 1 + ... + size-1). */
static void check(const char *what, const float *data, size_t count, int size)
{
    for (size_t i = 0; i < count; i++) {
        float expected = (float)size * (float)(i % 100) + (float)(size * (size - 1) / 2);
        if (data[i] != expected) {
            fprintf(stderr, "%s: data[%zu] is %g, not %g\n", what, i, data[i], expected);
            exit(EXIT_FAILURE);
        }
    }
}

int main(void)
{
    const size_t count = 1000003; /* elements, not bytes; any number will do */
    graccl_comm_t *comm;
    int rank, size;

    /* Rank, number of ranks and where to meet come from the environment that the launcher set. */
    CHECK(graccl_comm_init_env(&comm));
    CHECK(graccl_comm_rank(comm, &rank));
    CHECK(graccl_comm_size(comm, &size));

    /* Any memory will do. */
    float *send = malloc(count * sizeof *send);
    float *recv = malloc(count * sizeof *recv);
    if (send == NULL || recv == NULL) {
        fprintf(stderr, "out of memory\n");
        return EXIT_FAILURE;
    }

    /* Out of place: send is only read. All ranks make the same calls in the same order. */
    fill(send, count, rank);
    CHECK(graccl_all_reduce(send, recv, count, GRACCL_FLOAT32, GRACCL_SUM, comm));
    check("out of place", recv, count, size);

    /* In place: the result takes the place of the contribution. */
    CHECK(graccl_all_reduce(send, send, count, GRACCL_FLOAT32, GRACCL_SUM, comm));
    check("in place", send, count, size);

    /*
     * In memory from graccl_mem_alloc the ranks of one host reach each other's data directly: no
     * copy. Allocate it once and keep it: it is worth it for buffers that are reduced again and again.
     */
    void *memory;
    CHECK(graccl_mem_alloc(&memory, count * sizeof(float)));
    float *registered = memory;
    fill(registered, count, rank);
    CHECK(graccl_all_reduce(registered, registered, count, GRACCL_FLOAT32, GRACCL_SUM, comm));
    check("registered memory", registered, count, size);

    /* Leave only when all are done: a rank that leaves early is an error for those that still wait. */
    CHECK(graccl_barrier(comm));
    CHECK(graccl_comm_destroy(comm));
    CHECK(graccl_mem_free(memory));
    free(recv);
    free(send);

    printf("rank %d of %d: ok\n", rank, size);
    return EXIT_SUCCESS;
}
