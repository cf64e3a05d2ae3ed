// Any MPI: compiled with each one's own mpicc.
#include "overlap.h"
#include <mpi.h>
#ifdef OPEN_MPI
#include <mpi-ext.h>
#endif

static const void *send_buf;
static void *recv_buf;
static int count, nranks;
static MPI_Datatype dtype;
static MPI_Request request;

static void all_reduce(void) { MPI_Allreduce(send_buf, recv_buf, count, dtype, MPI_SUM, MPI_COMM_WORLD); }
static void all_gather(void) { MPI_Allgather(send_buf, count, dtype, recv_buf, count, dtype, MPI_COMM_WORLD); }
static void reduce_scatter(void) { MPI_Reduce_scatter_block(send_buf, recv_buf, count, dtype, MPI_SUM, MPI_COMM_WORLD); }
static void broadcast(void) { MPI_Bcast(recv_buf, count, dtype, bench_root(nranks), MPI_COMM_WORLD); }
static void all_to_all(void) { MPI_Alltoall(send_buf, count, dtype, recv_buf, count, dtype, MPI_COMM_WORLD); }
static void barrier(void) { MPI_Barrier(MPI_COMM_WORLD); }
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
  int size = 0, rank, ok = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  if (t != MPI_DATATYPE_NULL && !MPI_Type_size(t, &size) && size == (int)bench_dsize(d)) {
    uint32_t x[4], y[4];
    bench_fill(x, d, 4, rank);
    ok = !MPI_Allreduce(x, y, 4, t, MPI_SUM, MPI_COMM_WORLD) && bench_check(y, d, 4, nranks * (nranks + 1) / 2, 0);
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_ARE_FATAL);
  return ok;
}
static bench_op prepare(const bench_job *j) {
  static int tried[BENCH_DTYPES];  // 0 not yet, 1 works, 2 does not
  static const bench_op calls[] = {all_reduce, all_gather, reduce_scatter, broadcast, all_to_all, barrier};
  dtype = type_of(j->dtype);
  if (!tried[j->dtype]) tried[j->dtype] = works(dtype, j->dtype) ? 1 : 2;
  send_buf = j->in_place ? MPI_IN_PLACE : j->send;
  recv_buf = j->recv;
  count = (int)j->count;
  // MPI_Bcast has one buffer only
  if (tried[j->dtype] != 1 || (j->what == BENCH_BROADCAST && !j->in_place)) return NULL;
  return calls[j->what];
}
static void start(const bench_job *j) {
  prepare(j);
  MPI_Iallreduce(send_buf, recv_buf, count, dtype, MPI_SUM, MPI_COMM_WORLD, &request);
}
static int test(void) {
  int done;
  MPI_Test(&request, &done, MPI_STATUS_IGNORE);
  return done;
}
static void wait_for_it(void) { MPI_Wait(&request, MPI_STATUS_IGNORE); }

int main(int argc, char **argv) {
  bench_pin(bench_env_rank());
  MPI_Init(&argc, &argv);
  int rank;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &nranks);
  bench_args a = bench_parse(argc, argv);
  bench_t b;
  bench_init(&b, rank, nranks);
  b.progress = progress;
  void *send = bench_alloc(a.max), *recv = a.places[1] ? bench_alloc(a.max) : NULL;
  MPI_Barrier(MPI_COMM_WORLD);
  bench_lib lib = {prepare, start, test, wait_for_it};
  int rc = a.overlap ? bench_overlap(&b, &lib, a.overlap, send) : bench_sweep(&b, &a, &lib, send, recv);
  if (rc) MPI_Abort(MPI_COMM_WORLD, rc);
  MPI_Finalize();
  return 0;
}
