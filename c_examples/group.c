/*
 * One process and one thread that drives several ranks, as one does with several devices: the calls of
 * all ranks form a group and are carried out together.
 *
 *   cc group.c $(pkg-config --cflags --libs graccl) -o group
 *   ./group 4
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

enum { MOST = 64, COUNT = 1000 };

int main(int argc, char **argv)
{
    static graccl_comm_t *comms[MOST];
    static double data[MOST][COUNT], moved[MOST];
    const int size = argc > 1 ? atoi(argv[1]) : 2;
    if (size < 1 || size > MOST) {
        fprintf(stderr, "usage: %s [RANKS], 1 to %d\n", argv[0], (int)MOST);
        return EXIT_FAILURE;
    }

    CHECK(graccl_comm_init_all(comms, size, NULL));
    for (int r = 0; r < size; r++) {
        for (int i = 0; i < COUNT; i++) data[r][i] = r + i;
    }

    /* Outside of a group the first of these would wait for the others for ever. */
    CHECK(graccl_group_start());
    for (int r = 0; r < size; r++) {
        CHECK(graccl_all_reduce(data[r], data[r], COUNT, GRACCL_FLOAT64, GRACCL_SUM, comms[r]));
    }
    CHECK(graccl_group_end()); /* the results are there now */

    /* Every rank sends a number to every other, in any order: nobody waits for anybody in particular. */
    static double in[MOST][MOST];
    CHECK(graccl_group_start());
    for (int r = 0; r < size; r++) {
        moved[r] = 10.0 * r;
        for (int peer = 0; peer < size; peer++) {
            CHECK(graccl_send(&moved[r], 1, GRACCL_FLOAT64, peer, comms[r]));
            CHECK(graccl_recv(&in[r][peer], 1, GRACCL_FLOAT64, peer, comms[r]));
        }
    }
    CHECK(graccl_group_end());

    for (int r = 0; r < size; r++) {
        for (int i = 0; i < COUNT; i++) {
            if (data[r][i] != size * (size - 1) / 2 + (double)size * i) {
                fprintf(stderr, "rank %d: data[%d] is %g\n", r, i, data[r][i]);
                return EXIT_FAILURE;
            }
        }
        for (int peer = 0; peer < size; peer++) {
            if (in[r][peer] != 10.0 * peer) {
                fprintf(stderr, "rank %d: got %g from rank %d\n", r, in[r][peer], peer);
                return EXIT_FAILURE;
            }
        }
    }
    for (int r = 0; r < size; r++) CHECK(graccl_comm_destroy(comms[r]));
    printf("%d ranks: ok\n", size);
    return EXIT_SUCCESS;
}
