// Any MPI: compiled with each one's own mpicc.
#include "sweep.h"
#include <mpi.h>
#ifdef OPEN_MPI
#include <mpi-ext.h>
#endif

static const void *send_buf;
static void *recv_buf;
static int count;
static MPI_Datatype dtype;

static void call(void) { MPI_Allreduce(send_buf, recv_buf, count, dtype, MPI_SUM, MPI_COMM_WORLD); }
static void progress(void) {
  int flag;
  MPI_Iprobe(MPI_ANY_SOURCE, 31999, MPI_COMM_WORLD, &flag, MPI_STATUS_IGNORE);
}

// The 16-bit types are extensions, each library with its own names.
static MPI_Datatype type_of(bench_dtype d) {
  if (d == BENCH_F32) return MPI_FLOAT;
#if defined(MPIX_C_FLOAT16)
  if (d == BENCH_F16) return MPIX_C_FLOAT16;
#endif
#if defined(MPIX_BFLOAT16)
  if (d == BENCH_BF16) return MPIX_BFLOAT16;
#elif defined(MPIX_C_BF16)
  if (d == BENCH_BF16) return MPIX_C_BF16;
#endif
  return MPI_DATATYPE_NULL;
}
// Some headers name a type that the library then refuses: try it.
static int works(MPI_Datatype t, bench_dtype d) {
  int size = 0, rank, nranks, ok = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &nranks);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  if (t != MPI_DATATYPE_NULL && !MPI_Type_size(t, &size) && size == (int)bench_dsize(d)) {
    uint32_t x[4], y[4];
    bench_fill(x, d, 4, rank);
    ok = !MPI_Allreduce(x, y, 4, t, MPI_SUM, MPI_COMM_WORLD) && bench_check(y, d, 4, nranks);
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_ARE_FATAL);
  return ok;
}
static int prepare(bench_dtype d, void *send, void *recv, size_t n) {
  static int tried[BENCH_DTYPES];  // 0 not yet, 1 works, 2 does not
  dtype = type_of(d);
  if (!tried[d]) tried[d] = works(dtype, d) ? 1 : 2;
  send_buf = send == recv ? MPI_IN_PLACE : send;
  recv_buf = recv;
  count = (int)n;
  return tried[d] != 1;
}

int main(int argc, char **argv) {
  bench_pin(bench_env_rank());
  MPI_Init(&argc, &argv);
  int rank, nranks;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &nranks);
  bench_args a = bench_parse(argc, argv);
  bench_t b;
  bench_init(&b, rank, nranks);
  b.progress = progress;
  void *send = bench_alloc(a.max), *recv = a.places[1] ? bench_alloc(a.max) : NULL;
  MPI_Barrier(MPI_COMM_WORLD);
  bench_lib lib = {prepare, call};
  int rc = bench_sweep(&b, &a, &lib, send, recv);
  if (rc) MPI_Abort(MPI_COMM_WORLD, rc);
  MPI_Finalize();
  return 0;
}
