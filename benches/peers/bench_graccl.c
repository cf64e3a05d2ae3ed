// graccl through its C API. Started as plain processes with torchrun's variables (RANK, WORLD_SIZE,
// LOCAL_RANK, MASTER_ADDR, MASTER_PORT); GRACCL_TRANSPORT chooses shm or tcp.
#include "overlap.h"
#include <graccl.h>

static graccl_comm_t *comm;
static const void *send_buf;
static void *recv_buf;
static size_t count;
static graccl_data_type_t dtype;
static int nranks;
static graccl_request_t *request;

static void must(graccl_result_t r, const char *what) {
  if (!r) return;
  fprintf(stderr, "bench: %s: %s\n", what, graccl_last_error(NULL));
  exit(5);
}
static void all_reduce(void) { must(graccl_all_reduce(send_buf, recv_buf, count, dtype, GRACCL_SUM, comm), "graccl_all_reduce"); }
static void all_gather(void) { must(graccl_all_gather(send_buf, recv_buf, count, dtype, comm), "graccl_all_gather"); }
static void reduce_scatter(void) { must(graccl_reduce_scatter(send_buf, recv_buf, count, dtype, GRACCL_SUM, comm), "graccl_reduce_scatter"); }
static void broadcast(void) { must(graccl_broadcast(send_buf, recv_buf, count, dtype, bench_root(nranks), comm), "graccl_broadcast"); }
static void all_to_all(void) { must(graccl_all_to_all(send_buf, recv_buf, count, dtype, comm), "graccl_all_to_all"); }
static void barrier(void) { must(graccl_barrier(comm), "graccl_barrier"); }

static bench_op prepare(const bench_job *j) {
  static const bench_op calls[] = {all_reduce, all_gather, reduce_scatter, broadcast, all_to_all, barrier};
  send_buf = j->send;
  recv_buf = j->recv;
  count = j->count;
  dtype = j->dtype == BENCH_F32 ? GRACCL_FLOAT32 : j->dtype == BENCH_F16 ? GRACCL_FLOAT16 : GRACCL_BFLOAT16;
  return calls[j->what];
}
static void start(const bench_job *j) {
  prepare(j);
  must(graccl_all_reduce_async(send_buf, recv_buf, count, dtype, GRACCL_SUM, comm, &request), "graccl_all_reduce_async");
}
static void wait_for_it(void) { must(graccl_request_wait(request), "graccl_request_wait"); }
static int test(void) {
  int done = 0;
  must(graccl_request_test(request, &done), "graccl_request_test");
  return done;
}

static void *alloc(const bench_args *a) {
  if (!a->registered) return bench_alloc(a->max);
  void *p = NULL;
  must(graccl_mem_alloc(&p, a->max), "graccl_mem_alloc");
  memset(p, 1, a->max);
  return p;
}

int main(int argc, char **argv) {
  bench_pin(bench_env_rank());
  bench_args a = bench_parse(argc, argv);
  bench_t b;
  nranks = bench_env_size();
  bench_init(&b, bench_env_rank(), nranks);
  must(graccl_comm_init_env(&comm), "graccl_comm_init_env");
  void *send = alloc(&a), *recv = a.places[1] ? alloc(&a) : NULL;
  bench_lib lib = {prepare, start, test, wait_for_it};
  int rc = a.overlap ? bench_overlap(&b, &lib, a.overlap, send) : bench_sweep(&b, &a, &lib, send, recv);
  if (rc) return rc;
  if (a.registered) {
    must(graccl_mem_free(send), "graccl_mem_free");
    if (recv) must(graccl_mem_free(recv), "graccl_mem_free");
  }
  must(graccl_comm_destroy(comm), "graccl_comm_destroy");
  return 0;
}
