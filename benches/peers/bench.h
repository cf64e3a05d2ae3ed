// The timing protocol that graccl and every peer is measured with. x86-64 Linux.
//
// All ranks are processes of one host. They share a small file in /dev/shm that has nothing to do
// with the library under test: an alignment barrier, the iteration counts that rank 0 chose, and
// every rank's start and end stamps.
//
//   one iteration:  own buffer dirtied -> alignment -> start -> op -> end
//   its latency  =  max over ranks(end) - max over ranks(start)      (last in -> last out)
//
// With ranks <= cores the alignment spins, then all ranks start at one TSC deadline (a skew of tens
// of ns). With more ranks than cores it sleeps on a futex: a waiting rank must not take cycles from
// one that works. A waiting rank calls `progress` now and then, so that a library that needs calls
// to finish what an earlier op left behind is not stalled by our barrier.
//
// The dirtying stands for the training step that writes the next gradients. Without it, libraries
// whose ranks read each other's buffers look too good: lines stay with whoever reduced them last.
// BENCH_WRITE=1 moves it behind the op and into the timed region ("the owner's next write").
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <immintrin.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BENCH_MAXIT 65536
#define BENCH_MAXRANKS 16
#define BENCH_PATIENCE_S 120  // a rank that waits longer takes the others for dead
#define BENCH_NEAR_NS 150.0   // round trip of a cache line; above: two L3 caches
#define BENCH_SAME_NS 45.0    // below: both virtual cores sit on one physical core

typedef struct {
  uint64_t start, end;
} bench_stamp;

typedef struct {
  volatile uint32_t gen;
  char pad0[60];
  volatile uint32_t count;
  char pad1[60];
  volatile uint64_t t_go;
  char pad2[56];
  volatile uint64_t niter;
  volatile double line_ns;
  char pad3[48];
  volatile uint64_t line;  // the probe's own cache line
  char pad4[120];
  bench_stamp st[BENCH_MAXRANKS][BENCH_MAXIT];
} bench_shared;

typedef void (*bench_op)(void);

typedef struct {
  int rank, nranks, ncores, spin;
  bench_shared *sh;
  double tick_ns;  // ns per TSC tick
  uint64_t go_ticks, patience_ticks;
  void (*progress)(void);
  FILE *out;  // rank 0 only
  const char *peer, *transport;
  double mintime, looptime;  // seconds a point
  char *touch;               // this rank's own buffer: what it dirties
  size_t touch_bytes;
  int timed_write;
} bench_t;

typedef struct {
  double median_us, p99_us, min_us;
  double loop_us;  // ops back to back without alignment, total / count: nccl-tests' number
  double line_ns;  // cache-line round trip between ranks 0 and 1, around this measurement
  const char *mode;  // same, near, far or mixed
  uint64_t iters;
} bench_result;

static inline uint64_t bench_tsc(void) {
  unsigned aux;
  uint64_t t = __rdtscp(&aux);
  _mm_lfence();
  return t;
}
static inline uint64_t bench_ns(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}
static inline long bench_futex(volatile uint32_t *p, int op, uint32_t v, struct timespec *ts) {
  return syscall(SYS_futex, p, op, v, ts, NULL, 0);
}

// ---- who we are, and on which core ----------------------------------------------------------

static inline int bench_env_int(const char *const *names, int otherwise) {
  for (; *names; names++) {
    const char *s = getenv(*names);
    if (s && *s) return atoi(s);
  }
  return otherwise;
}
// from whichever launcher started us: an MPI's, or plain processes with torchrun's variables
static inline int bench_env_rank(void) {
  const char *n[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "RANK", NULL};
  return bench_env_int(n, 0);
}
static inline int bench_env_size(void) {
  const char *n[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE", NULL};
  return bench_env_int(n, 1);
}
static inline int bench_ncores(void) { return (int)sysconf(_SC_NPROCESSORS_ONLN); }

// Call it first thing in main, before the library starts threads (they inherit all of this).
// Pins rank r to core r mod cores. BENCH_RT=1 asks for the real-time class: other jobs then neither
// preempt a rank nor delay the wake-up of a sleeping one. Otherwise BENCH_NICE (default -15) lowers
// our nice value, and that of our autogroup: where the kernel groups tasks by session, a task's own
// nice value counts only inside its group. Without the privilege, nothing of this happens.
static inline void bench_pin(int rank) {
  const char *s = getenv("BENCH_NICE");
  int nice = s ? atoi(s) : -15;
  if (nice) {
    int fd = open("/proc/self/autogroup", O_WRONLY);
    if (fd >= 0) {
      char b[16];
      int n = snprintf(b, sizeof b, "%d", nice);
      if (write(fd, b, (size_t)n) != n) {
      }
      close(fd);
    }
    setpriority(PRIO_PROCESS, 0, nice);
  }
  s = getenv("BENCH_RT");
  if (s && atoi(s)) {
    struct sched_param p;
    memset(&p, 0, sizeof p);
    p.sched_priority = 1;
    sched_setscheduler(0, SCHED_RR, &p);
  }
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(rank % bench_ncores(), &set);
  sched_setaffinity(0, sizeof set, &set);
}

static inline void bench_init(bench_t *b, int rank, int nranks) {
  memset(b, 0, sizeof *b);
  b->rank = rank;
  b->nranks = nranks;
  b->ncores = bench_ncores();
  b->spin = nranks <= b->ncores;
  const char *path = getenv("BENCH_SHM");
  if (!path || nranks > BENCH_MAXRANKS) {
    fprintf(stderr, "bench: BENCH_SHM (a new file in /dev/shm) is not set, or more than %d ranks\n", BENCH_MAXRANKS);
    exit(2);
  }
  int fd = open(path, O_RDWR | O_CREAT, 0600);
  if (fd < 0 || ftruncate(fd, sizeof(bench_shared))) {
    perror(path);
    exit(2);
  }
  b->sh = (bench_shared *)mmap(NULL, sizeof(bench_shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (b->sh == MAP_FAILED) {
    perror("mmap");
    exit(2);
  }
  close(fd);
  uint64_t n0 = bench_ns(), t0 = bench_tsc();
  while (bench_ns() - n0 < 20000000) {
  }
  uint64_t n1 = bench_ns(), t1 = bench_tsc();
  b->tick_ns = (double)(n1 - n0) / (double)(t1 - t0);
  b->go_ticks = (uint64_t)(1500.0 / b->tick_ns);
  b->patience_ticks = (uint64_t)(BENCH_PATIENCE_S * 1e9 / b->tick_ns);
  const char *s = getenv("BENCH_OUT");
  if (rank == 0) b->out = s ? fopen(s, "a") : stdout;
  if (rank == 0 && !b->out) {
    perror(s);
    exit(2);
  }
  b->peer = getenv("BENCH_PEER") ? getenv("BENCH_PEER") : "?";
  b->transport = getenv("BENCH_TRANSPORT") ? getenv("BENCH_TRANSPORT") : "?";
  b->mintime = (s = getenv("BENCH_MINTIME")) ? atof(s) : 0.2;
  b->looptime = b->mintime / 4;
  b->timed_write = (s = getenv("BENCH_WRITE")) && atoi(s);
}

// ---- alignment ------------------------------------------------------------------------------

static inline void bench_lost(const bench_t *b) {
  fprintf(stderr, "bench: rank %d waited %d s for the others; one of them is dead or stuck\n", b->rank, BENCH_PATIENCE_S);
  exit(4);
}

// Returns the TSC tick at which to start.
static inline uint64_t bench_align(bench_t *b) {
  bench_shared *s = b->sh;
  uint32_t g = s->gen;
  uint64_t late = bench_tsc() + b->patience_ticks;
  if (__sync_add_and_fetch(&s->count, 1) == (uint32_t)b->nranks) {
    s->count = 0;
    s->t_go = bench_tsc() + b->go_ticks;
    __sync_synchronize();
    s->gen = g + 1;
    if (!b->spin) bench_futex(&s->gen, FUTEX_WAKE, 1 << 20, NULL);
  } else if (b->spin) {
    for (uint64_t k = 1; s->gen == g; k++) {
      _mm_pause();
      if (k & 1023) continue;
      if (b->progress) b->progress();
      if (bench_tsc() > late) bench_lost(b);
    }
  } else {
    while (s->gen == g) {
      struct timespec ts = {0, 1000000};
      bench_futex(&s->gen, FUTEX_WAIT, g, &ts);
      if (s->gen == g && b->progress) b->progress();
      if (bench_tsc() > late) bench_lost(b);
    }
  }
  if (b->spin) {
    uint64_t go = s->t_go, t;
    while ((t = bench_tsc()) < go) {
    }
    return t;
  }
  return bench_tsc();
}

// ---- measuring ------------------------------------------------------------------------------

static int bench_cmp(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

// one byte in every cache line of the own buffer (zero over zero: the line counts, not the value)
static inline void bench_dirty(bench_t *b) {
  for (size_t j = 0; j < b->touch_bytes; j += 64) ((volatile char *)b->touch)[j] = 0;
}

static inline double bench_loop(bench_t *b, bench_op f, uint64_t n) {
  bench_align(b);
  uint64_t t0 = bench_tsc();
  for (uint64_t i = 0; i < n; i++) {
    f();
    if (b->timed_write) bench_dirty(b);
  }
  uint64_t t1 = bench_tsc();
  bench_stamp *s = &b->sh->st[b->rank][0];
  s->start = t0;
  s->end = t1;
  bench_align(b);
  uint64_t last_end = 0, last_start = 0;
  for (int r = 0; r < b->nranks; r++) {
    bench_stamp x = b->sh->st[r][0];
    if (x.end > last_end) last_end = x.end;
    if (x.start > last_start) last_start = x.start;
  }
  double us = (double)(last_end - last_start) * b->tick_ns / 1000.0 / (double)n;
  bench_align(b);
  return us;
}

// rank 0 decides how many ops of `us` each fit into `secs`
static inline uint64_t bench_decide(bench_t *b, double us, double secs, uint64_t lo, uint64_t hi) {
  if (b->rank == 0) {
    double n = secs * 1e6 / (us > 0.01 ? us : 0.01);
    uint64_t k = n > (double)hi ? hi : (uint64_t)n;
    b->sh->niter = k < lo ? lo : k;
  }
  bench_align(b);
  uint64_t k = b->sh->niter;
  bench_align(b);
  return k;
}

// Round trip of one cache line between ranks 0 and 1, in ns; 0 where there is nothing to probe.
static inline double bench_probe(bench_t *b) {
  bench_shared *s = b->sh;
  if (b->nranks < 2 || b->ncores < 2) return 0;
  if (b->rank == 0) s->line = 0;
  bench_align(b);
  enum { CHUNKS = 21, TRIPS = 60 };
  if (b->rank == 0) {
    double d[CHUNKS];
    uint64_t v = 1;
    for (int c = 0; c < CHUNKS; c++) {
      uint64_t t0 = bench_tsc();
      for (int i = 0; i < TRIPS; i++, v += 2) {
        __atomic_store_n(&s->line, v, __ATOMIC_RELEASE);
        while (__atomic_load_n(&s->line, __ATOMIC_ACQUIRE) != v + 1) _mm_pause();
      }
      d[c] = (double)(bench_tsc() - t0) * b->tick_ns / TRIPS;
    }
    qsort(d, CHUNKS, sizeof(double), bench_cmp);
    s->line_ns = d[CHUNKS / 2];
  } else if (b->rank == 1) {
    for (uint64_t v = 1; v < 2 * CHUNKS * TRIPS; v += 2) {
      while (__atomic_load_n(&s->line, __ATOMIC_ACQUIRE) != v) _mm_pause();
      __atomic_store_n(&s->line, v + 1, __ATOMIC_RELEASE);
    }
  }
  bench_align(b);
  double r = s->line_ns;
  bench_align(b);
  return r;
}
static inline const char *bench_state(double ns) {
  return ns < BENCH_SAME_NS ? "same" : ns < BENCH_NEAR_NS ? "near" : "far";
}

static inline bench_result bench_once(bench_t *b, bench_op f) {
  bench_result r;
  memset(&r, 0, sizeof r);
  double us = bench_loop(b, f, 1);  // cold
  if (us < 500e3) us = bench_loop(b, f, us < 50e3 ? 2 : 1);
  if (us < 50e3) us = bench_loop(b, f, bench_decide(b, us, b->mintime / 8, 2, 2000));
  // the alignment costs some us too, so count it in
  double per = us + (b->spin ? 3.0 : 20.0 * b->nranks);
  uint64_t n = bench_decide(b, per, b->mintime, 5, BENCH_MAXIT);
  bench_stamp *st = b->sh->st[b->rank];
  for (uint64_t i = 0; i < n; i++) {
    if (!b->timed_write) bench_dirty(b);
    uint64_t t0 = bench_align(b);
    f();
    if (b->timed_write) bench_dirty(b);
    uint64_t t1 = bench_tsc();
    st[i].start = t0;
    st[i].end = t1;
  }
  bench_align(b);
  if (b->rank == 0) {
    double *d = (double *)malloc(n * sizeof(double));
    if (!d) abort();
    for (uint64_t i = 0; i < n; i++) {
      uint64_t last_end = 0, last_start = 0;
      for (int k = 0; k < b->nranks; k++) {
        bench_stamp x = b->sh->st[k][i];
        if (x.end > last_end) last_end = x.end;
        if (x.start > last_start) last_start = x.start;
      }
      d[i] = (double)(int64_t)(last_end - last_start) * b->tick_ns / 1000.0;
    }
    qsort(d, n, sizeof(double), bench_cmp);
    r.median_us = d[n / 2];
    r.min_us = d[0];
    r.p99_us = d[(uint64_t)((double)(n - 1) * 0.99)];
    r.iters = n;
    free(d);
  }
  bench_align(b);
  r.loop_us = us > 500e3 ? us : bench_loop(b, f, bench_decide(b, us, b->looptime, 3, 1000000));
  return r;
}

// Measures one point; if the cores moved meanwhile, again, at most three times ("mixed").
static inline bench_result bench_run(bench_t *b, bench_op f) {
  bench_result r;
  for (int attempt = 0; attempt < 3; attempt++) {
    double before = bench_probe(b);
    r = bench_once(b, f);
    double after = bench_probe(b);
    r.line_ns = before > after ? before : after;
    r.mode = bench_state(before);
    if (!strcmp(r.mode, bench_state(after))) break;
    r.mode = "mixed";
  }
  return r;
}

// One row: peer transport collective dtype place ranks bytes median_us p99_us min_us loop_us
// busbw_GBs (nccl-tests' bus bandwidth: bytes / median * bus) iters line_ns mode
static inline void bench_print(bench_t *b, const char *collective, const char *dtype, const char *place, size_t bytes,
                               double bus, const bench_result *r) {
  if (b->rank) return;
  double alg = r->median_us > 0 ? (double)bytes / r->median_us / 1e3 : 0;
  fprintf(b->out, "%s\t%s\t%s\t%s\t%s\t%d\t%zu\t%.3f\t%.3f\t%.3f\t%.3f\t%.4f\t%llu\t%.0f\t%s\n", b->peer, b->transport,
          collective, dtype, place, b->nranks, bytes, r->median_us, r->p99_us, r->min_us, r->loop_us, alg * bus,
          (unsigned long long)r->iters, r->line_ns, r->mode);
  fflush(b->out);
}

#ifdef __cplusplus
}
#endif
