// The sweep as a shared object, for bench_torch.py.
#include "sweep.h"

static bench_t b;

void bench_lib_pin(void) { bench_pin(bench_env_rank()); }

// bench_torch.py's: returns 0, or another where it has no such type or placement. Allreduce only.
static int (*python_prepare)(bench_dtype, void *, void *, size_t);
static bench_op python_call;
static bench_op prepare(const bench_job *j) {
  return j->what == BENCH_ALL_REDUCE && !python_prepare(j->dtype, j->send, j->recv, j->count) ? python_call : NULL;
}

// argv: the bench's command line without the program's name.
int bench_lib_sweep(int argc, char **argv, int (*prepare_it)(bench_dtype, void *, void *, size_t), bench_op call) {
  char *full[64] = {(char *)"bench"};
  if (argc > 62) return 2;
  for (int i = 0; i < argc; i++) full[i + 1] = argv[i];
  bench_args a = bench_parse(argc + 1, full);
  bench_init(&b, bench_env_rank(), bench_env_size());
  void *send = bench_alloc(a.max), *recv = a.places[1] ? bench_alloc(a.max) : NULL;
  python_prepare = prepare_it;
  python_call = call;
  bench_lib lib = {prepare, NULL, NULL, NULL};
  return bench_sweep(&b, &a, &lib, send, recv);
}
