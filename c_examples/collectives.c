/*
 * Every collective once, with small vectors whose results are checked.
 *
 *   cc collectives.c $(pkg-config --cflags --libs graccl) -o collectives
 *   graccl run -n 4 -- ./collectives       (or: mpirun -n 4 ./collectives, torchrun, srun)
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

#define EXPECT(what, found, expected)                                      \
    do {                                                                   \
        if ((found) != (expected)) {                                       \
            fprintf(stderr, "rank %d, %s: %d, not %d\n", rank, what,       \
                    (int)(found), (int)(expected));                        \
            exit(EXIT_FAILURE);                                            \
        }                                                                  \
    } while (0)

enum { COUNT = 3 }; /* elements of a block */

static int rank, size;
static graccl_comm_t *comm;

/* Element i of the block that rank `from` has for rank `to`. */
static int element(int from, int to, int i)
{
    return 10000 * from + 100 * to + i;
}

static int *vector(size_t count)
{
    int *v = calloc(count, sizeof *v);
    if (v == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(EXIT_FAILURE);
    }
    return v;
}

/* Blocks of one size: all of these have in-place forms but all_to_all, see the header. */
static void even(void)
{
    const int root = size - 1, first = 0, all = size * (size - 1) / 2;
    int *send = vector((size_t)size * COUNT), *recv = vector((size_t)size * COUNT);

    for (int to = 0; to < size; to++) {
        for (int i = 0; i < COUNT; i++) send[to * COUNT + i] = element(rank, to, i);
    }

    CHECK(graccl_all_reduce(send, recv, COUNT, GRACCL_INT32, GRACCL_SUM, comm));
    for (int i = 0; i < COUNT; i++) EXPECT("all_reduce", recv[i], 10000 * all + size * i);

    CHECK(graccl_reduce_scatter(send, recv, COUNT, GRACCL_INT32, GRACCL_SUM, comm));
    for (int i = 0; i < COUNT; i++) EXPECT("reduce_scatter", recv[i], 10000 * all + size * (100 * rank + i));

    CHECK(graccl_all_gather(send, recv, COUNT, GRACCL_INT32, comm));
    for (int from = 0; from < size; from++) {
        for (int i = 0; i < COUNT; i++) EXPECT("all_gather", recv[from * COUNT + i], element(from, 0, i));
    }

    CHECK(graccl_broadcast(send, recv, COUNT, GRACCL_INT32, root, comm));
    for (int i = 0; i < COUNT; i++) EXPECT("broadcast", recv[i], element(root, 0, i));

    CHECK(graccl_reduce(send, recv, COUNT, GRACCL_INT32, GRACCL_MAX, root, comm));
    for (int i = 0; i < COUNT && rank == root; i++) EXPECT("reduce", recv[i], element(size - 1, 0, i));

    CHECK(graccl_gather(send, recv, COUNT, GRACCL_INT32, root, comm));
    for (int from = 0; from < size && rank == root; from++) {
        for (int i = 0; i < COUNT; i++) EXPECT("gather", recv[from * COUNT + i], element(from, 0, i));
    }

    CHECK(graccl_scatter(send, recv, COUNT, GRACCL_INT32, root, comm));
    for (int i = 0; i < COUNT; i++) EXPECT("scatter", recv[i], element(root, rank, i));

    CHECK(graccl_all_to_all(send, recv, COUNT, GRACCL_INT32, comm));
    for (int from = 0; from < size; from++) {
        for (int i = 0; i < COUNT; i++) EXPECT("all_to_all", recv[from * COUNT + i], element(from, rank, i));
    }

    /* Ranks 0 .. rank, and ranks 0 .. rank-1: rank 0 has nothing before it, its recv stays as it is. */
    CHECK(graccl_scan(send, recv, COUNT, GRACCL_INT32, GRACCL_SUM, comm));
    for (int i = 0; i < COUNT; i++) {
        EXPECT("scan", recv[i], 10000 * (rank * (rank + 1) / 2) + (rank + 1) * i);
    }
    recv[0] = -1;
    CHECK(graccl_exscan(send, recv, COUNT, GRACCL_INT32, GRACCL_SUM, comm));
    EXPECT("exscan", recv[0], rank == first ? -1 : 10000 * (rank * (rank - 1) / 2));

    free(recv);
    free(send);
}

/* Blocks of different sizes: rank r has r + 1 elements for everyone, so rank 0 gets 1 from itself ... */
static void uneven(void)
{
    const int root = 0, total = size * (size + 1) / 2;
    int *send = vector((size_t)size * (size_t)size), *recv = vector(2 * (size_t)total);
    size_t *counts = malloc((size_t)size * sizeof *counts);  /* r + 1 for each rank r */
    size_t *displs = malloc((size_t)size * sizeof *displs);  /* with a gap after each block */
    size_t *mine = malloc((size_t)size * sizeof *mine);      /* rank + 1, for everyone */
    if (counts == NULL || displs == NULL || mine == NULL) exit(EXIT_FAILURE);
    size_t at = 0;
    for (int r = 0; r < size; r++) {
        counts[r] = (size_t)r + 1;
        displs[r] = at;
        at += counts[r] + 1;
        mine[r] = (size_t)rank + 1;
    }
    for (int i = 0; i <= rank; i++) send[i] = element(rank, 0, i);

    /* Where to: displs with the gaps, or NULL for one behind the other. */
    CHECK(graccl_all_gather_v(send, recv, counts, displs, GRACCL_INT32, comm));
    for (int from = 0; from < size; from++) {
        for (int i = 0; i <= from; i++) {
            EXPECT("all_gather_v", recv[displs[from] + (size_t)i], element(from, 0, i));
        }
    }

    CHECK(graccl_gather_v(send, mine[0], recv, counts, NULL, GRACCL_INT32, root, comm));
    if (rank == root) EXPECT("gather_v", recv[total - 1], element(size - 1, 0, size - 1));

    /* The root still has the gathered blocks: back to where they came from. */
    CHECK(graccl_scatter_v(recv, counts, NULL, send, mine[0], GRACCL_INT32, root, comm));
    for (int i = 0; i <= rank; i++) EXPECT("scatter_v", send[i], element(rank, 0, i));

    for (int to = 0; to < size; to++) {
        for (int i = 0; i <= rank; i++) send[to * (rank + 1) + i] = element(rank, to, i);
    }
    CHECK(graccl_all_to_all_v(send, mine, NULL, recv, counts, displs, GRACCL_INT32, comm));
    for (int from = 0; from < size; from++) {
        for (int i = 0; i <= from; i++) {
            EXPECT("all_to_all_v", recv[displs[from] + (size_t)i], element(from, rank, i));
        }
    }

    int *whole = vector((size_t)total);
    for (int i = 0; i < total; i++) whole[i] = i;
    CHECK(graccl_reduce_scatter_v(whole, recv, counts, GRACCL_INT32, GRACCL_SUM, comm));
    for (int i = 0; i <= rank; i++) {
        EXPECT("reduce_scatter_v", recv[i], size * (rank * (rank + 1) / 2 + i));
    }

    free(whole);
    free(mine);
    free(displs);
    free(counts);
    free(recv);
    free(send);
}

/* Messages around a ring; and a sum in which each rank's part is weighted by a factor of its own. */
static void others(void)
{
    const int next = (rank + 1) % size, before = (rank + size - 1) % size;
    int token = rank, got = -1;
    CHECK(graccl_send_recv(&token, 1, next, &got, 1, before, GRACCL_INT32, comm));
    EXPECT("send_recv", got, before);

    /* From rank 0 along the line; ranks that are neighbours call one each. */
    token = 42;
    if (rank > 0) CHECK(graccl_recv(&got, 1, GRACCL_INT32, rank - 1, comm));
    if (rank + 1 < size) CHECK(graccl_send(&token, 1, GRACCL_INT32, rank + 1, comm));
    EXPECT("send and recv", rank > 0 ? got : token, token);

    float weight = (float)(rank + 1), one = 1, weights = 0;
    graccl_red_op_t weighted;
    CHECK(graccl_red_op_create_pre_mul_sum(&weighted, &weight, GRACCL_FLOAT32, comm));
    CHECK(graccl_all_reduce(&one, &weights, 1, GRACCL_FLOAT32, weighted, comm));
    CHECK(graccl_red_op_destroy(weighted, comm));
    EXPECT("pre_mul_sum", weights, size * (size + 1) / 2);
}

int main(void)
{
    CHECK(graccl_comm_init_env(&comm));
    CHECK(graccl_comm_rank(comm, &rank));
    CHECK(graccl_comm_size(comm, &size));
    even();
    uneven();
    others();
    CHECK(graccl_barrier(comm));
    CHECK(graccl_comm_destroy(comm));
    printf("rank %d of %d: ok\n", rank, size);
    return EXIT_SUCCESS;
}
