/*
 * Communicators from a communicator: the ranks as a grid, with one communicator for each row and one for
 * each column, as in tensor and data parallel training.
 *
 *   cc split.c $(pkg-config --cflags --libs graccl) -o split
 *   graccl run -n 4 -- ./split             (or: mpirun -n 4 ./split, torchrun, srun)
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

/* Sums the ranks of a communicator, given in the numbers of the whole job. */
static int sum_of(int rank, graccl_comm_t *comm)
{
    int sum = 0;
    CHECK(graccl_all_reduce(&rank, &sum, 1, GRACCL_INT32, GRACCL_SUM, comm));
    return sum;
}

static void expect(const char *what, int found, int expected)
{
    if (found != expected) {
        fprintf(stderr, "%s: %d, not %d\n", what, found, expected);
        exit(EXIT_FAILURE);
    }
}

int main(void)
{
    graccl_comm_t *comm, *row, *column, *reversed, *evens, *twin;
    int rank, size, number;
    CHECK(graccl_comm_init_env(&comm));
    CHECK(graccl_comm_rank(comm, &rank));
    CHECK(graccl_comm_size(comm, &size));

    /* Rows of two: ranks 0 and 1, ranks 2 and 3, ... */
    const int width = 2, x = rank % width, y = rank / width;
    CHECK(graccl_comm_split(comm, y, rank, &row, NULL));
    CHECK(graccl_comm_split(comm, x, rank, &column, NULL));
    int in_row = 0, in_column = 0;
    for (int r = 0; r < size; r++) {
        in_row += r / width == y ? r : 0;
        in_column += r % width == x ? r : 0;
    }
    expect("the row's sum", sum_of(rank, row), in_row);
    expect("the column's sum", sum_of(rank, column), in_column);

    /* Keys put the ranks in another order. */
    CHECK(graccl_comm_split(comm, 0, -rank, &reversed, NULL));
    CHECK(graccl_comm_rank(reversed, &number));
    expect("the number in reverse", number, size - 1 - rank);

    /* Who has no colour takes part in the split and gets nothing. */
    CHECK(graccl_comm_split(comm, rank % 2 == 0 ? 0 : GRACCL_SPLIT_NOCOLOR, 0, &evens, NULL));
    expect("whether there is a communicator", evens != NULL, rank % 2 == 0);
    if (evens != NULL) CHECK(graccl_comm_size(evens, &number));
    if (evens != NULL) expect("the even ranks", number, (size + 1) / 2);

    /* The same ranks again: calls on it may be made by another thread, in an order of their own. */
    CHECK(graccl_comm_dup(comm, &twin));
    expect("the sum of all", sum_of(rank, twin), size * (size - 1) / 2);

    /* In any order; destroying NULL does nothing. */
    CHECK(graccl_barrier(comm));
    CHECK(graccl_comm_destroy(comm));
    expect("the row's sum without its parent", sum_of(rank, row), in_row);
    graccl_comm_t *rest[] = {row, column, reversed, evens, twin};
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++) {
        if (rest[i] != NULL) CHECK(graccl_barrier(rest[i]));
        CHECK(graccl_comm_destroy(rest[i]));
    }
    printf("rank %d of %d: ok\n", rank, size);
    return EXIT_SUCCESS;
}
