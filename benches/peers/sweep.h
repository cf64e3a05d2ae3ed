// An allreduce bench but for the library's call: command line, buffers, checking, the sweep over
// types, placements and sizes.
//
//   --sizes 4,64K,16M   --dtype f32[,f16,bf16]   --place in[,out]   --memory host|registered
#pragma once
#include "bench.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { BENCH_F32, BENCH_F16, BENCH_BF16, BENCH_DTYPES } bench_dtype;

typedef struct {
  int dtypes[BENCH_DTYPES], places[2], registered, nsizes;
  size_t sizes[64], max;
} bench_args;

// What a bench provides.
typedef struct {
  // Makes `call` reduce `count` elements from send to recv (equal: in place). Returns 0, or
  // non-zero where the library has no such type.
  int (*prepare)(bench_dtype d, void *send, void *recv, size_t count);
  bench_op call;
} bench_lib;

static inline size_t bench_dsize(bench_dtype d) { return d == BENCH_F32 ? 4 : 2; }
static inline const char *bench_dname(bench_dtype d) { return d == BENCH_F32 ? "f32" : d == BENCH_F16 ? "f16" : "bf16"; }

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

// Small integers, exact in all three types up to 8 ranks; neighbours differ, so that a shifted or
// stale piece is seen.
static inline void bench_fill(void *p, bench_dtype d, size_t n, int rank) {
  for (size_t i = 0; i < n; i++) bench_put(p, d, i, (float)((rank + 1) * (int)(i % 3 + 1)));
}
static inline int bench_check(const void *p, bench_dtype d, size_t n, int nranks) {
  for (size_t i = 0; i < n; i++) {
    float want = (float)(nranks * (nranks + 1) / 2 * (int)(i % 3 + 1));
    if (bench_get(p, d, i) != want) {
      fprintf(stderr, "bench: WRONG result at element %zu of %zu: %g, expected %g (%s)\n", i, n, bench_get(p, d, i), want, bench_dname(d));
      return 0;
    }
  }
  return 1;
}

// ---- command line ---------------------------------------------------------------------------

static inline void bench_usage(const char *what) {
  fprintf(stderr, "bench: bad argument '%s'\nusage: --sizes 4,64K,16M --dtype f32,f16,bf16 --place in,out --memory host|registered\n", what);
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
      int d;
      for (d = 0; d < BENCH_DTYPES && strcmp(p, bench_dname((bench_dtype)d)); d++) {
      }
      if (!strcmp(argv[i], "--sizes") && a.nsizes < 64)
        a.sizes[a.nsizes++] = bench_size(p);
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
  for (int i = 0; i < a.nsizes; i++)
    if (a.sizes[i] > a.max) a.max = a.sizes[i];
  return a;
}

// ---- the sweep ------------------------------------------------------------------------------

// `send` holds args->max bytes, `recv` too where out of place is asked for. Returns 0, or 3 after
// a wrong result.
static inline int bench_sweep(bench_t *b, const bench_args *a, const bench_lib *lib, void *send, void *recv) {
  for (int di = 0; di < BENCH_DTYPES; di++) {
    bench_dtype d = (bench_dtype)di;
    if (!a->dtypes[d]) continue;
    for (int out = 0; out < 2; out++) {
      if (!a->places[out]) continue;
      for (int i = 0; i < a->nsizes; i++) {
        size_t n = a->sizes[i] / bench_dsize(d), bytes = n * bench_dsize(d);
        void *dst = out ? recv : send;
        if (lib->prepare(d, send, dst, n)) {
          if (!b->rank) fprintf(stderr, "bench: %s has no %s\n", b->peer, bench_dname(d));
          continue;
        }
        bench_fill(send, d, n, b->rank);
        lib->call();
        if (!bench_check(dst, d, n, b->nranks)) return 3;
        // zeros stay zeros: no run ends in infinities or denormals
        memset(send, 0, bytes);
        b->touch = (char *)send;
        b->touch_bytes = bytes;
        bench_result r = bench_run(b, lib->call);
        // once more: what only goes wrong in a warm state is wrong as well
        bench_fill(send, d, n, b->rank);
        lib->call();
        if (!bench_check(dst, d, n, b->nranks)) return 3;
        bench_print(b, bench_dname(d), out ? "out" : "in", bytes, &r);
      }
    }
  }
  bench_align(b);
  return 0;
}

#ifdef __cplusplus
}
#endif
