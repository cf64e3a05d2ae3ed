// A bench but for the library's calls: command line, buffers, checking, the sweep over collectives,
// types, placements and sizes.
//
//   --collective all_reduce[,all_gather,reduce_scatter,broadcast,all_to_all,barrier]
//   --sizes 8,64K,16M   --dtype f32[,f16,bf16]   --place in[,out]   --memory host|registered
//   --overlap 64M       instead of all this: see overlap.h
//
// A size is the larger of a rank's two buffers, as in nccl-tests: all that all_gather receives, all
// that reduce_scatter and all_to_all send, broadcast's message.
#pragma once
#include "bench.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { BENCH_F32, BENCH_F16, BENCH_BF16, BENCH_DTYPES } bench_dtype;
typedef enum {
  BENCH_ALL_REDUCE,
  BENCH_ALL_GATHER,
  BENCH_REDUCE_SCATTER,
  BENCH_BROADCAST,
  BENCH_ALL_TO_ALL,
  BENCH_BARRIER,
  BENCH_COLLECTIVES
} bench_collective;

typedef struct {
  int collectives[BENCH_COLLECTIVES], dtypes[BENCH_DTYPES], places[2], registered, nsizes;
  size_t sizes[64], max, overlap;
} bench_args;

// What a call has to do. In place, all_reduce and broadcast have send == recv, and all_gather's send
// is this rank's block of recv; reduce_scatter and all_to_all are only out of place, because the
// libraries differ in what else they allow.
typedef struct {
  bench_collective what;
  bench_dtype dtype;
  void *send, *recv;
  size_t count;  // elements: of the message (all_reduce, broadcast), or of one rank's block
  int in_place;
} bench_job;

// What a bench provides. Only `prepare` is a must; the others are for overlap.h.
typedef struct {
  // The call that does this job, or NULL where the library has no such collective or type. Broadcast's
  // root is another in every call: bench_root().
  bench_op (*prepare)(const bench_job *job);
  // A non-blocking all_reduce of `job`: begins it; says whether it is done; waits for it.
  void (*start)(const bench_job *job);
  int (*test)(void);
  void (*wait)(void);
} bench_lib;

static inline size_t bench_dsize(bench_dtype d) { return d == BENCH_F32 ? 4 : 2; }
static inline const char *bench_dname(bench_dtype d) { return d == BENCH_F32 ? "f32" : d == BENCH_F16 ? "f16" : "bf16"; }

static inline const char *bench_cname(int c) {
  static const char *const names[] = {"all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all", "barrier"};
  return names[c];
}

// With a fixed root, the root of a broadcast could run ahead of the others: nobody makes it wait.
static int bench_roots;
static inline int bench_root(int nranks) { return bench_roots++ % nranks; }

// ---- buffers --------------------------------------------------------------------------------

static inline void *bench_alloc(size_t bytes) {
  size_t align = bytes >= (2u << 20) ? (2u << 20) : 4096;
  size_t size = (bytes + align - 1) / align * align;
  void *p = NULL;
  if (posix_memalign(&p, align, size)) {
    fprintf(stderr, "bench: no memory for %zu bytes\n", size);
    exit(2);
  }
  if (align > 4096) madvise(p, size, MADV_HUGEPAGE);
  memset(p, 1, size);
  return p;
}

static inline void bench_put(void *p, bench_dtype d, size_t i, float v) {
  if (d == BENCH_F32)
    ((float *)p)[i] = v;
  else if (d == BENCH_F16)
    ((uint16_t *)p)[i] = (uint16_t)_cvtss_sh(v, 0);
  else {
    uint32_t u;
    memcpy(&u, &v, 4);
    ((uint16_t *)p)[i] = (uint16_t)(u >> 16);
  }
}
static inline float bench_get(const void *p, bench_dtype d, size_t i) {
  if (d == BENCH_F32) return ((const float *)p)[i];
  if (d == BENCH_F16) return _cvtsh_ss(((const uint16_t *)p)[i]);
  uint32_t u = (uint32_t)((const uint16_t *)p)[i] << 16;
  float v;
  memcpy(&v, &u, 4);
  return v;
}

// Small integers, their sums exact in all three types up to 8 ranks; neighbours and blocks differ, so
// that a shifted, stale or exchanged piece is seen. Never zero.
static inline float bench_value(size_t i) { return (float)(i % 7 + 1); }
static inline void bench_fill(void *p, bench_dtype d, size_t n, int rank) {
  for (size_t i = 0; i < n; i++) bench_put(p, d, i, (float)(rank + 1) * bench_value(i));
}
// Whether `n` elements at p are what one or more ranks (their numbers + 1 add up to `ranks`) filled
// in from element `from` on.
static inline int bench_check(const void *p, bench_dtype d, size_t n, int ranks, size_t from) {
  for (size_t i = 0; i < n; i++) {
    float want = (float)ranks * bench_value(from + i);
    if (bench_get(p, d, i) != want) {
      fprintf(stderr, "bench: WRONG result at element %zu of %zu: %g, expected %g (%s)\n", i, n, bench_get(p, d, i), want, bench_dname(d));
      return 0;
    }
  }
  return 1;
}
static inline char *bench_block(const bench_job *j, void *p, int k) { return (char *)p + (size_t)k * j->count * bench_dsize(j->dtype); }
static inline size_t bench_sent(const bench_job *j, int nranks) {
  if (j->what == BENCH_BARRIER) return 0;
  return j->count * (j->what == BENCH_REDUCE_SCATTER || j->what == BENCH_ALL_TO_ALL ? (size_t)nranks : 1);
}
static inline size_t bench_received(const bench_job *j, int nranks) {
  if (j->what == BENCH_BARRIER) return 0;
  return j->count * (j->what == BENCH_ALL_GATHER || j->what == BENCH_ALL_TO_ALL ? (size_t)nranks : 1);
}

// A barrier that lets a rank out before the last one came in: seen, because each in turn comes late.
static inline int bench_verify_barrier(bench_t *b, bench_op call) {
  for (int k = 1; k <= 4 * b->nranks; k++) {
    if (k % b->nranks == b->rank) usleep(500);
    __atomic_store_n(&b->sh->st[b->rank][0].start, (uint64_t)k, __ATOMIC_RELEASE);
    call();
    for (int r = 0; r < b->nranks; r++) {
      if (__atomic_load_n(&b->sh->st[r][0].start, __ATOMIC_ACQUIRE) >= (uint64_t)k) continue;
      fprintf(stderr, "bench: WRONG barrier: rank %d left it before rank %d had come\n", b->rank, r);
      return 0;
    }
  }
  return 1;
}

// One checked call; for a broadcast one from every root.
static inline int bench_verify(bench_t *b, const bench_job *j, bench_op call) {
  int n = b->nranks, all = n * (n + 1) / 2, ok = 1;
  bench_dtype d = j->dtype;
  if (j->what == BENCH_BARRIER) {
    bench_align(b);  // nobody still reads the stamps
    memset((void *)b->sh->st[b->rank], 0, sizeof(bench_stamp));
    bench_align(b);
    return bench_verify_barrier(b, call);
  }
  for (int k = 0; k < (j->what == BENCH_BROADCAST ? n : 1) && ok; k++) {
    int root = bench_roots % n;
    memset(j->recv, 0, bench_received(j, n) * bench_dsize(d));
    if (j->what != BENCH_BROADCAST || root == b->rank) bench_fill(j->send, d, bench_sent(j, n), b->rank);
    call();
    switch (j->what) {
    case BENCH_ALL_REDUCE: ok = bench_check(j->recv, d, j->count, all, 0); break;
    case BENCH_REDUCE_SCATTER: ok = bench_check(j->recv, d, j->count, all, (size_t)b->rank * j->count); break;
    case BENCH_BROADCAST: ok = bench_check(j->recv, d, j->count, root + 1, 0); break;
    default:
      for (int r = 0; r < n && ok; r++)
        ok = bench_check(bench_block(j, j->recv, r), d, j->count, r + 1, j->what == BENCH_ALL_TO_ALL ? (size_t)b->rank * j->count : 0);
    }
  }
  return ok;
}

// ---- command line ---------------------------------------------------------------------------

static inline void bench_usage(const char *what) {
  fprintf(stderr, "bench: bad argument '%s'\nusage: --sizes 4,64K,16M --dtype f32,f16,bf16 --place in,out --memory host|registered\n"
          "       --collective all_reduce,all_gather,reduce_scatter,broadcast,all_to_all,barrier --overlap 64M\n", what);
  exit(2);
}
static inline size_t bench_size(const char *s) {
  char *e;
  double v = strtod(s, &e);
  if (*e == 'K') v *= 1 << 10, e++;
  if (*e == 'M') v *= 1 << 20, e++;
  if (*e || v < 4) bench_usage(s);
  return (size_t)v;
}
static inline bench_args bench_parse(int argc, char **argv) {
  bench_args a;
  memset(&a, 0, sizeof a);
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) bench_usage(argv[i]);
    for (char *p = strtok(argv[i + 1], ","); p; p = strtok(NULL, ",")) {
      int d, c;
      for (d = 0; d < BENCH_DTYPES && strcmp(p, bench_dname((bench_dtype)d)); d++) {
      }
      for (c = 0; c < BENCH_COLLECTIVES && strcmp(p, bench_cname(c)); c++) {
      }
      if (!strcmp(argv[i], "--sizes") && a.nsizes < 64)
        a.sizes[a.nsizes++] = bench_size(p);
      else if (!strcmp(argv[i], "--overlap"))
        a.overlap = a.max = bench_size(p);
      else if (!strcmp(argv[i], "--collective") && c < BENCH_COLLECTIVES)
        a.collectives[c] = 1;
      else if (!strcmp(argv[i], "--dtype") && d < BENCH_DTYPES)
        a.dtypes[d] = 1;
      else if (!strcmp(argv[i], "--place") && (!strcmp(p, "in") || !strcmp(p, "out")))
        a.places[!strcmp(p, "out")] = 1;
      else if (!strcmp(argv[i], "--memory") && (!strcmp(p, "host") || !strcmp(p, "registered")))
        a.registered = !strcmp(p, "registered");
      else
        bench_usage(p);
    }
  }
  if (!a.nsizes)
    for (size_t s = 4; s <= 256u << 20; s *= 4) a.sizes[a.nsizes++] = s;
  if (!a.dtypes[0] && !a.dtypes[1] && !a.dtypes[2]) a.dtypes[BENCH_F32] = 1;
  if (!a.places[0] && !a.places[1]) a.places[0] = 1;
  int any = 0;
  for (int c = 0; c < BENCH_COLLECTIVES; c++) any |= a.collectives[c];
  if (!any) a.collectives[BENCH_ALL_REDUCE] = 1;
  if (a.overlap) return a;
  a.max = 4096;  // a small size is rounded up to an element a rank
  for (int i = 0; i < a.nsizes; i++)
    if (a.sizes[i] > a.max) a.max = a.sizes[i];
  return a;
}

// ---- the sweep ------------------------------------------------------------------------------

// Measures one point. Returns 0, or 3 after a wrong result.
static inline int bench_point(bench_t *b, const bench_lib *lib, bench_job *j, size_t size, void *send, void *recv) {
  static const double bus[] = {2, 1, 1, 0, 1, 0};  // of (n - 1) / n
  size_t n = (size_t)b->nranks, one = bench_dsize(j->dtype);
  int whole = j->what == BENCH_ALL_REDUCE || j->what == BENCH_BROADCAST;
  j->count = j->what == BENCH_BARRIER ? 0 : size / one / (whole ? 1 : n);
  if (!j->count && j->what != BENCH_BARRIER) j->count = 1;
  size_t bytes = j->count * one * (whole ? 1 : n);
  j->send = j->in_place && j->what == BENCH_ALL_GATHER ? bench_block(j, send, b->rank) : send;
  j->recv = j->in_place ? send : recv;
  bench_op call = lib->prepare(j);
  if (!call) {
    if (!b->rank) fprintf(stderr, "bench: %s has no %s of %s\n", b->peer, bench_cname(j->what), bench_dname(j->dtype));
    return 0;
  }
  if (!bench_verify(b, j, call)) return 3;
  // zeros stay zeros: no run ends in infinities or denormals
  b->touch = (char *)j->send;
  b->touch_bytes = bench_sent(j, b->nranks) * one;
  memset(j->send, 0, b->touch_bytes);
  if (j->in_place) memset(j->recv, 0, bytes);
  bench_result r = bench_run(b, call);
  // once more: what only goes wrong in a warm state is wrong as well
  if (!bench_verify(b, j, call)) return 3;
  const char *place = j->what == BENCH_BARRIER ? "-" : j->in_place ? "in" : "out";
  double factor = j->what == BENCH_BROADCAST ? 1 : bus[j->what] * (double)(n - 1) / (double)n;
  bench_print(b, bench_cname(j->what), j->what == BENCH_BARRIER ? "-" : bench_dname(j->dtype), place, bytes, factor, &r);
  return 0;
}

// `send` holds args->max bytes, `recv` too where something is out of place. Returns 0, or 3 after a wrong result.
static inline int bench_sweep(bench_t *b, const bench_args *a, const bench_lib *lib, void *send, void *recv) {
  bench_job j;
  memset(&j, 0, sizeof j);
  for (int c = 0; c < BENCH_COLLECTIVES; c++) {
    if (!a->collectives[c]) continue;
    j.what = (bench_collective)c;
    if (c == BENCH_BARRIER) {
      int rc = bench_point(b, lib, &j, 0, send, recv);
      if (rc) return rc;
      continue;
    }
    for (int d = 0; d < BENCH_DTYPES; d++)
      for (int out = 0; out < 2; out++)
        for (int i = 0; a->dtypes[d] && a->places[out] && i < a->nsizes; i++) {
          j.dtype = (bench_dtype)d;
          j.in_place = !out;
          int rc = j.in_place && (c == BENCH_REDUCE_SCATTER || c == BENCH_ALL_TO_ALL) ? 0 : bench_point(b, lib, &j, a->sizes[i], send, recv);
          if (rc) return rc;
        }
  }
  bench_align(b);
  return 0;
}

#ifdef __cplusplus
}
#endif
