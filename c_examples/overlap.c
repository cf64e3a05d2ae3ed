/*
 * Calls that go on while the program computes: gradients are reduced bucket by bucket, as they become
 * ready, while the next ones are worked out.
 *
 *   cc overlap.c $(pkg-config --cflags --libs graccl) -o overlap
 *   graccl run -n 4 -- ./overlap           (or: mpirun -n 4 ./overlap, torchrun, srun)
 */
#include <stdio.h>
#include <stdlib.h>

#include <graccl.h>

#define CHECK(call)                                                        \
    do {                                                                   \
        if ((call) != GRACCL_SUCCESS) {                                    \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__,             \
                    graccl_last_error(NULL));                              \
            exit(EXIT_FAILURE);                                            \
        }                                                                  \
    } while (0)

enum { BUCKETS = 8, COUNT = 100003 };

/* Stands for the backward pass: bucket b of rank r becomes r + b everywhere. */
static void compute(float *bucket, int b, int rank)
{
    for (size_t i = 0; i < COUNT; i++) bucket[i] = (float)(rank + b);
}

static void check(const float *bucket, int b, int size)
{
    const float expected = (float)(size * (size - 1) / 2 + size * b);
    for (size_t i = 0; i < COUNT; i++) {
        if (bucket[i] != expected) {
            fprintf(stderr, "bucket %d: [%zu] is %g, not %g\n", b, i, bucket[i], expected);
            exit(EXIT_FAILURE);
        }
    }
}

/* Runs in whichever thread ends the call: it is short and makes no call that waits. */
static void note(void *arg, graccl_result_t result)
{
    *(graccl_result_t *)arg = result;
}

int main(void)
{
    graccl_comm_t *comm;
    graccl_request_t *requests[BUCKETS], *request;
    int rank, size, done;

    CHECK(graccl_comm_init_env(&comm));
    CHECK(graccl_comm_rank(comm, &rank));
    CHECK(graccl_comm_size(comm, &size));
    float *gradient = malloc(BUCKETS * COUNT * sizeof *gradient);
    if (gradient == NULL) {
        fprintf(stderr, "out of memory\n");
        return EXIT_FAILURE;
    }

    /* Start each bucket when it is ready; from then on it is graccl's until its request is over. */
    for (int b = 0; b < BUCKETS; b++) {
        float *bucket = gradient + (size_t)b * COUNT;
        compute(bucket, b, rank);
        CHECK(graccl_all_reduce_async(bucket, bucket, COUNT, GRACCL_FLOAT32, GRACCL_SUM, comm, &requests[b]));
    }
    for (int b = 0; b < BUCKETS; b++) {
        CHECK(graccl_request_wait(requests[b])); /* the request is gone after it */
        check(gradient + (size_t)b * COUNT, b, size);
    }

    /* Ask now and then instead of waiting. A test that says done frees the request. */
    compute(gradient, 5, rank);
    CHECK(graccl_all_reduce_async(gradient, gradient, COUNT, GRACCL_FLOAT32, GRACCL_SUM, comm, &request));
    size_t looks = 0;
    do {
        CHECK(graccl_request_test(request, &done));
        looks++; /* here the program would do something useful */
    } while (!done);
    check(gradient, 5, size);

    /* Or wait, but not for longer than a while. */
    CHECK(graccl_barrier_async(comm, &request));
    do {
        CHECK(graccl_request_wait_timeout(request, 0.5, &done));
    } while (!done);

    /*
     * Or be called. The result is written by another thread, so look at it only after something that
     * came later on the same communicator is over.
     */
    graccl_result_t result = GRACCL_IN_PROGRESS;
    compute(gradient, 7, rank);
    CHECK(graccl_all_reduce_async(gradient, gradient, COUNT, GRACCL_FLOAT32, GRACCL_SUM, comm, &request));
    CHECK(graccl_request_set_callback(request, note, &result));
    CHECK(graccl_barrier(comm));
    CHECK(graccl_comm_destroy(comm));
    CHECK(result);
    check(gradient, 7, size);

    free(gradient);
    printf("rank %d of %d: ok\n", rank, size);
    return EXIT_SUCCESS;
}
