// graccl through its C API. Started as plain processes with torchrun's variables (RANK, WORLD_SIZE,
// LOCAL_RANK, MASTER_ADDR, MASTER_PORT); GRACCL_TRANSPORT chooses shm or tcp.
#include "sweep.h"
#include <graccl.h>

static graccl_comm_t *comm;
static const void *send_buf;
static void *recv_buf;
static size_t count;
static graccl_data_type_t dtype;

static void must(graccl_result_t r, const char *what) {
  if (!r) return;
  fprintf(stderr, "bench: %s: %s\n", what, graccl_last_error(NULL));
  exit(5);
}
static void call(void) {
  must(graccl_all_reduce(send_buf, recv_buf, count, dtype, GRACCL_SUM, comm), "graccl_all_reduce");
}
static int prepare(bench_dtype d, void *send, void *recv, size_t n) {
  send_buf = send;
  recv_buf = recv;
  count = n;
  dtype = d == BENCH_F32 ? GRACCL_FLOAT32 : d == BENCH_F16 ? GRACCL_FLOAT16 : GRACCL_BFLOAT16;
  return 0;
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
  bench_init(&b, bench_env_rank(), bench_env_size());
  must(graccl_comm_init_env(&comm), "graccl_comm_init_env");
  void *send = alloc(&a), *recv = a.places[1] ? alloc(&a) : NULL;
  bench_lib lib = {prepare, call};
  int rc = bench_sweep(&b, &a, &lib, send, recv);
  if (rc) return rc;
  if (a.registered) {
    must(graccl_mem_free(send), "graccl_mem_free");
    if (recv) must(graccl_mem_free(recv), "graccl_mem_free");
  }
  must(graccl_comm_destroy(comm), "graccl_comm_destroy");
  return 0;
}
