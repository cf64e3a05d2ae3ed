// What a non-blocking allreduce leaves of its caller's core, when another core is free.
//
// Rank 0's caller computes on core 0, in registers only; every other thread of the job is moved to
// the last core: rank 0's progress thread, and the other ranks, which only take part. Every round:
//
//   alone     rank 0 computes, the others sleep
//   beside    rank 0 computes, rank 1 copies memory: what the machine itself takes (shared core, clock)
//   blocking  the blocking allreduce, nobody computes
//   during    rank 0 begins the allreduce and computes until it is done, asking every 20 us
//
// Rates are counts of a unit of work over time, with the time of beginning and asking in it.
#pragma once
#include "sweep.h"

#include <dirent.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { BENCH_ROUNDS = 15 };

// Moves every other thread of this process to `others`, and the caller to `mine`.
static inline void bench_move(int mine, int others) {
  pid_t self = (pid_t)syscall(SYS_gettid);
  DIR *dir = opendir("/proc/self/task");
  for (struct dirent *e; dir && (e = readdir(dir));) {
    pid_t task = (pid_t)atoi(e->d_name);
    if (task <= 0) continue;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(task == self ? mine : others, &set);
    sched_setaffinity(task, sizeof set, &set);
  }
  if (dir) closedir(dir);
}

// One unit of work: eight chains of multiplications and additions. One copy of it: inlined into the loops that
// are compared, it took 12 % longer in one of them.
static __attribute__((noinline)) void bench_unit(uint64_t n) {
  double x[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  for (uint64_t i = 0; i < n; i++)
    for (int k = 0; k < 8; k++) {
      x[k] = x[k] * 0.999 + 0.001;
      __asm__ volatile("" : "+x"(x[k]));
    }
}
// Units in a second, over `ticks`.
static inline double bench_rate(const bench_t *b, uint64_t unit, uint64_t ticks) {
  uint64_t begin = bench_tsc(), now, units = 0;
  do {
    bench_unit(unit);
    units++;
  } while ((now = bench_tsc()) - begin < ticks);
  return (double)units / ((double)(now - begin) * b->tick_ns);
}
static inline void bench_copy(const bench_t *b, char *p, size_t bytes, uint64_t ticks) {
  for (uint64_t begin = bench_tsc(); bench_tsc() - begin < ticks;) memcpy(p, p + bytes / 2, bytes / 2);
  (void)b;
}
static inline double bench_median(double *d) {
  qsort(d, BENCH_ROUNDS, sizeof(double), bench_cmp);
  return d[BENCH_ROUNDS / 2];
}

// One row: peer transport overlap ranks bytes alone beside during (the two as a part of alone)
// async_us blocking_us line_ns mode. Returns 0, or 3 after a wrong result.
static inline int bench_overlap(bench_t *b, const bench_lib *lib, size_t bytes, void *buffer) {
  int last = b->ncores - 1;
  if (b->nranks < 2 || b->ncores < 2 || !lib->start) {
    if (!b->rank) fprintf(stderr, "bench: no overlap: it takes 2 ranks, 2 cores and a library with a non-blocking allreduce\n");
    return 0;
  }
  b->spin = 0;  // who waits for the others sleeps: the cores are counted
  bench_job j = {BENCH_ALL_REDUCE, BENCH_F32, buffer, buffer, bytes / 4, 1};
  bench_op call = lib->prepare(&j);
  if (!call || !bench_verify(b, &j, call)) return 3;
  for (int k = 0; k < 2; k++) {  // the first call may start threads
    bench_fill(buffer, j.dtype, j.count, b->rank);
    lib->start(&j);
    lib->wait();
    if (!bench_check(buffer, j.dtype, j.count, b->nranks * (b->nranks + 1) / 2, 0)) return 3;
  }
  memset(buffer, 0, bytes);
  b->touch = (char *)buffer;
  b->touch_bytes = bytes;
  bench_move(b->rank ? last : 0, last);
  if (!b->rank) {  // core 0 is the computation's, whatever else runs on this machine
    struct sched_param p;
    memset(&p, 0, sizeof p);
    p.sched_priority = 1;
    sched_setscheduler(0, SCHED_RR, &p);
  }
  uint64_t begin = bench_tsc();
  bench_unit(100000);
  uint64_t ms = (uint64_t)(1e6 / b->tick_ns), unit = 100000 * ms / 50 / (bench_tsc() - begin) + 1;

  double line = bench_probe(b);
  double alone[BENCH_ROUNDS], beside[BENCH_ROUNDS], during[BENCH_ROUNDS], blocking[BENCH_ROUNDS], async[BENCH_ROUNDS];
  for (int k = 0; k < BENCH_ROUNDS; k++) {
    bench_align(b);
    if (!b->rank) alone[k] = bench_rate(b, unit, 30 * ms);
    bench_align(b);
    if (!b->rank) beside[k] = bench_rate(b, unit, 30 * ms) / alone[k];
    if (b->rank == 1) bench_copy(b, (char *)buffer, bytes, 30 * ms);
    bench_dirty(b);
    blocking[k] = bench_loop(b, call, 1);
    bench_dirty(b);
    bench_align(b);
    begin = bench_tsc();
    lib->start(&j);
    uint64_t units = 0;
    if (b->rank) lib->wait();
    else
      do {
        bench_unit(unit);
        units++;
      } while (!lib->test());
    double ns = (double)(bench_tsc() - begin) * b->tick_ns;
    async[k] = ns / 1e3;
    during[k] = (double)units / ns / alone[k];
    bench_align(b);
    if (!b->rank) usleep(20000);  // the kernel lets no task have all of a core in the real-time class
  }
  double after = bench_probe(b);
  const char *mode = strcmp(bench_state(line), bench_state(after)) ? "mixed" : bench_state(line);
  if (b->rank) return 0;
  fprintf(b->out, "%s\t%s\toverlap\t%d\t%zu\t%.0f\t%.3f\t%.3f\t%.0f\t%.0f\t%.0f\t%s\n", b->peer, b->transport, b->nranks, bytes,
          bench_median(alone) * 1e9, bench_median(beside), bench_median(during), bench_median(async), bench_median(blocking),
          line > after ? line : after, mode);
  fflush(b->out);
  return 0;
}

#ifdef __cplusplus
}
#endif
