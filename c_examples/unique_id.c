/*
 * Without a launcher: the program starts its own ranks and tells them where to meet.
 *
 *   cc unique_id.c $(pkg-config --cflags --libs graccl) -o unique_id
 *   ./unique_id 4
 *
 * One process makes a unique id, 128 bytes, and brings it to all ranks by any means: here rank 0 does,
 * through pipes to the processes that it forked; an existing connection or a file would do as well. The
 * id holds a secret key, so send it only where you would send a password.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <graccl.h>

/* One rank's life, the same for all ranks from here on. Returns the process's exit status. */
static int run(int rank, int size, graccl_unique_id_t id)
{
    graccl_comm_t *comm = NULL;
    int status = EXIT_FAILURE;

    /* Fields that are not set keep what the environment says, or the default. */
    graccl_config_t config = GRACCL_CONFIG_INITIALIZER;
    config.init_timeout_ms = 30000; /* give up if a rank has not come after 30 s */

    if (graccl_comm_init_rank_config(&comm, size, id, rank, &config) != GRACCL_SUCCESS) goto failed;

    int sum = rank + 1;
    if (graccl_all_reduce(&sum, &sum, 1, GRACCL_INT32, GRACCL_SUM, comm) != GRACCL_SUCCESS) goto failed;
    if (graccl_barrier(comm) != GRACCL_SUCCESS) goto failed;

    if (sum == size * (size + 1) / 2) {
        printf("rank %d of %d: ok\n", rank, size);
        status = EXIT_SUCCESS;
    } else {
        fprintf(stderr, "rank %d: the sum is %d\n", rank, sum);
    }
    graccl_comm_destroy(comm);
    return status;

failed:
    fprintf(stderr, "rank %d: %s\n", rank, graccl_last_error(NULL));
    graccl_comm_destroy(comm); /* NULL is allowed */
    return EXIT_FAILURE;
}

int main(int argc, char **argv)
{
    const int size = argc > 1 ? atoi(argv[1]) : 2;
    graccl_unique_id_t id;
    int status;

    if (size < 1 || size > 64) {
        fprintf(stderr, "usage: %s [RANKS], 1 to 64\n", argv[0]);
        return EXIT_FAILURE;
    }

    /*
     * Fork first, use graccl afterwards: a forked process must not go on with what graccl holds in its
     * parent (connections, listening sockets).
     */
    int to_rank[64];
    for (int rank = 1; rank < size; rank++) {
        int ends[2];
        if (pipe(ends) != 0) {
            perror("pipe");
            return EXIT_FAILURE;
        }
        pid_t pid = fork();
        if (pid < 0) {
            perror("fork");
            return EXIT_FAILURE; /* those already forked read the end of their pipe and end too */
        }
        if (pid == 0) {
            close(ends[1]);
            if (read(ends[0], &id, sizeof id) != (ssize_t)sizeof id) return EXIT_FAILURE;
            close(ends[0]);
            return run(rank, size, id);
        }
        close(ends[0]);
        to_rank[rank] = ends[1];
    }

    /* This process is rank 0: from here on it listens for the others. */
    if (graccl_get_unique_id(&id) != GRACCL_SUCCESS) {
        fprintf(stderr, "%s\n", graccl_last_error(NULL));
        return EXIT_FAILURE;
    }
    for (int rank = 1; rank < size; rank++) {
        if (write(to_rank[rank], &id, sizeof id) != (ssize_t)sizeof id) perror("write");
        close(to_rank[rank]);
    }
    int result = run(0, size, id);

    /* The job is as good as its worst rank. */
    while (wait(&status) > 0) {
        if (!WIFEXITED(status) || WEXITSTATUS(status) != EXIT_SUCCESS) result = EXIT_FAILURE;
    }
    return result;
}
