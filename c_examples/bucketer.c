/*
 * Gradients that are reduced in buckets while the backward pass goes on: what the planner makes of a model's
 * times, beside one bucket, one for each tensor, and buckets of 25 MB.
 *
 *   cc bucketer.c $(pkg-config --cflags --libs graccl) -o bucketer
 *   graccl run -n 2 -- ./bucketer MODEL.csv [STEPS [SPEED]] [spin] [late] [half|bfloat16|int8]
 *
 * MODEL.csv has a line `tensor,elements,type,ready_us,forward_us` and then one for each gradient, in the order of
 * the backward pass (docs/plan.md). The pass is played: each gradient is written when its time has come. The
 * program sleeps until then, as one that waits for a GPU; with `spin` each layer keeps its core busy for that long.
 * SPEED 2 plays it twice as fast. With `late` each layer of the next forward pass waits for its own gradients only. The
 * last words let gradients travel between hosts in that type.
 *
 * Printed are, for each way, the median step, what the plan foretold, "efficiency": computing as a share of the step;
 * and "hidden": the share of communication that went on behind computing, so that the step was not longer for it.
 */
#define _POSIX_C_SOURCE 199309L /* clock_gettime, nanosleep */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <graccl.h>

#define CHECK(call)                                                        \
    do {                                                                   \
        if ((call) != GRACCL_SUCCESS) {                                    \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__,             \
                    graccl_last_error(NULL));                              \
            exit(EXIT_FAILURE);                                            \
        }                                                                  \
    } while (0)

enum { MAX = 2048, WARM = 10 };

static graccl_tensor_t tensors[MAX];
static double ready[MAX], layer[MAX], forward; /* seconds; layer: see MODEL.csv's forward_us */
static size_t count;
static int spin, late, wire = GRACCL_UNSET;

static void die(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(EXIT_FAILURE);
}

static void read_model(const char *path, double speed)
{
    char line[512], name[256];
    double elements, ready_us, forward_us;
    FILE *file = fopen(path, "r");
    if (file == NULL) die("cannot open the model file");
    while (fgets(line, sizeof line, file) != NULL) {
        if (line[0] == '#' || strncmp(line, "tensor,", 7) == 0) continue;
        int got = sscanf(line, "%255[^,],%lf,%*[^,],%lf,%lf", name, &elements, &ready_us, &forward_us);
        if (got < 3) continue;
        if (count == MAX) die("too many tensors");
        tensors[count].count = (size_t)elements;
        tensors[count].data_type = GRACCL_FLOAT32;
        ready[count] = ready_us * 1e-6 / speed;
        layer[count] = got == 4 ? forward_us * 1e-6 / speed : 0;
        forward += layer[count++];
    }
    fclose(file);
    if (count == 0) die("no tensors in the model file");
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* What this thread has had of a core. */
static double used(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Stands for computing so long. *clock is when that began, and then when it is over: a late end of one layer's sleep is
 * no reason to end the next one late. */
static void compute(double seconds, double *clock)
{
    double left, until = used() + seconds;
    *clock += seconds;
    while (spin ? used() < until : (left = *clock - now()) > 0) {
        if (!spin) {
            struct timespec t = {(time_t)left, (long)((left - (double)(time_t)left) * 1e9)};
            nanosleep(&t, NULL);
        }
    }
    if (spin) *clock = now();
}

static void check(graccl_bucketer_t *bucketer, size_t i, double want)
{
    float *gradient;
    CHECK(graccl_bucketer_gradient(bucketer, i, (void **)&gradient));
    /* What travels as another type is rounded. */
    double off = (double)gradient[0] - want, most = wire == GRACCL_UNSET ? 0 : 0.01 * want;
    if (!(off <= most && off >= -most)) die("a gradient is wrong");
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The slowest rank's times count; the median of them. */
static double median(graccl_comm_t *comm, double *times, int steps)
{
    CHECK(graccl_all_reduce(times, times, (size_t)steps, GRACCL_FLOAT64, GRACCL_MAX, comm));
    qsort(times, (size_t)steps, sizeof *times, by_value);
    return times[steps / 2];
}

/* Plays steps; the median of a step in seconds, how much of it communication went on, and what was foretold. */
static double play(graccl_comm_t *comm, graccl_fusion_t fusion, int steps, double *busy, double *predicted,
                   char *text, size_t bytes)
{
    int rank, size;
    graccl_bucketer_t *bucketer;
    graccl_bucketer_config_t config = GRACCL_BUCKETER_CONFIG_INITIALIZER;
    double *taken = malloc(sizeof *taken * (size_t)steps), *under_way = malloc(sizeof *taken * (size_t)steps);
    if (taken == NULL || under_way == NULL) die("out of memory");
    config.fusion = fusion;
    config.threshold = 25 << 20;
    config.late = late;
    config.wire = wire;
    CHECK(graccl_comm_rank(comm, &rank));
    CHECK(graccl_comm_size(comm, &size));
    CHECK(graccl_bucketer_create(&bucketer, tensors, count, &config, comm));
    *predicted = 0;
    for (int step = 0; step < WARM + steps; step++) {
        graccl_step_times_t times;
        double began = now(), clock = began, want = step + 0.5 * (size - 1);
        if (!late) compute(forward, &clock);
        for (size_t i = 0; i < count; i++) {
            float *gradient;
            compute(ready[i] - (i > 0 ? ready[i - 1] : 0), &clock);
            CHECK(graccl_bucketer_gradient(bucketer, i, (void **)&gradient));
            gradient[0] = (float)(rank + step);
            CHECK(graccl_bucketer_mark_ready(bucketer, i));
        }
        if (late) {
            /* The next step's forward pass. */
            CHECK(graccl_bucketer_finish_backward(bucketer));
            for (size_t i = count; i-- > 0;) {
                CHECK(graccl_bucketer_wait(bucketer, i));
                check(bucketer, i, want);
                clock = now();
                compute(layer[i], &clock);
            }
        }
        CHECK(graccl_bucketer_finish_step(bucketer, &times));
        for (size_t i = 0; i < count && !late; i++) check(bucketer, i, want);
        if (step >= WARM) {
            taken[step - WARM] = now() - began;
            under_way[step - WARM] = times.busy;
            *predicted = times.predicted;
        }
    }
    CHECK(graccl_bucketer_describe(bucketer, text, bytes));
    CHECK(graccl_bucketer_destroy(bucketer));
    double step = median(comm, taken, steps);
    *busy = median(comm, under_way, steps);
    free(taken);
    free(under_way);
    return step;
}

int main(int argc, char **argv)
{
    static const struct {
        graccl_fusion_t fusion;
        const char *name;
    } ways[] = {{GRACCL_FUSION_PLANNED, "planned"},
                {GRACCL_FUSION_PER_TENSOR, "one for each tensor"},
                {GRACCL_FUSION_THRESHOLD, "25 MB"},
                {GRACCL_FUSION_ONE_BUCKET, "one"}};
    static char text[1 << 16];
    graccl_comm_t *comm;
    int rank;

    static const char usage[] = "usage: bucketer MODEL.csv [STEPS [SPEED]] [spin] [late] [half|bfloat16|int8]";
    if (argc < 2) die(usage);
    double numbers[2] = {20, 1};
    int given = 0;
    for (int i = 2; i < argc; i++) {
        char *end;
        double number = strtod(argv[i], &end);
        if (*end == 0 && end != argv[i] && given < 2)
            numbers[given++] = number;
        else if (strcmp(argv[i], "spin") == 0)
            spin = 1;
        else if (strcmp(argv[i], "late") == 0)
            late = 1;
        else if (strcmp(argv[i], "half") == 0)
            wire = GRACCL_FLOAT16;
        else if (strcmp(argv[i], "bfloat16") == 0)
            wire = GRACCL_BFLOAT16;
        else if (strcmp(argv[i], "int8") == 0)
            wire = GRACCL_INT8;
        else
            die(usage);
    }
    double speed = numbers[1];
    if (!(numbers[0] >= 1 && numbers[0] <= 1e6 && speed > 0)) die("STEPS is a number from 1, SPEED one above 0");
    int steps = (int)numbers[0];
    read_model(argv[1], speed);
    CHECK(graccl_comm_init_env(&comm));
    CHECK(graccl_comm_rank(comm, &rank));
    double compute = forward + ready[count - 1];
    if (rank == 0) {
        printf("%zu tensors, %.1f ms of computing\n", count, compute * 1e3);
        printf("%-22s %10s %10s %10s %10s\n", "buckets", "ms a step", "foretold", "efficiency", "hidden");
    }
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        double busy, predicted, taken = play(comm, ways[i].fusion, steps, &busy, &predicted, text, sizeof text);
        /* What the step takes beside computing is communication that is not hidden, and copies. */
        double hidden = busy > 0 ? 1 - (taken - compute) / busy : 1;
        if (rank != 0) continue;
        printf("%-22s %10.2f ", ways[i].name, taken * 1e3);
        if (predicted > 0)
            printf("%10.2f", predicted * 1e3);
        else
            printf("%10s", "-");
        printf(" %9.1f%% %9.1f%%\n", 100 * compute / taken, 100 * (hidden < 0 ? 0 : hidden > 1 ? 1 : hidden));
        if (i == 0) printf("%s", text);
        fflush(stdout);
    }
    CHECK(graccl_comm_destroy(comm));
    return EXIT_SUCCESS;
}
