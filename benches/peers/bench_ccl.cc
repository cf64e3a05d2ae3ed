// Intel oneCCL on the CPU, its C++ API.
#include "sweep.h"
#include <functional>
#include <oneapi/ccl.hpp>
#include <string>

static ccl::communicator *comm;
static std::function<void()> op;
static void call() { op(); }

static int prepare(bench_dtype d, void *send, void *recv, size_t n) {
  auto dt = d == BENCH_F32 ? ccl::datatype::float32 : d == BENCH_F16 ? ccl::datatype::float16 : ccl::datatype::bfloat16;
  // cached schedules are oneCCL's advice for operations that repeat
  auto attr = ccl::create_operation_attr<ccl::allreduce_attr>();
  std::string id = std::string(bench_dname(d)) + (send == recv ? "in" : "out") + std::to_string(n);
  attr.set<ccl::operation_attr_id::to_cache>(true);
  attr.set<ccl::operation_attr_id::match_id>(ccl::string_class(id.c_str()));
  op = [=] { ccl::allreduce(send, recv, n, dt, ccl::reduction::sum, *comm, attr).wait(); };
  return 0;
}

// The key-value store's address travels in a file in the directory BENCH_STORE.
static ccl::shared_ptr_class<ccl::kvs> store(int rank) {
  std::string path = std::string(getenv("BENCH_STORE")) + "/ccl_address", draft = path + ".draft";
  ccl::kvs::address_type addr;
  if (rank == 0) {
    auto kvs = ccl::create_main_kvs();
    addr = kvs->get_address();
    FILE *f = fopen(draft.c_str(), "w");
    if (!f || fwrite(addr.data(), 1, addr.size(), f) != addr.size() || fclose(f) || rename(draft.c_str(), path.c_str())) {
      perror(path.c_str());
      exit(2);
    }
    return kvs;
  }
  FILE *f;
  while (!(f = fopen(path.c_str(), "r"))) usleep(1000);
  if (fread(addr.data(), 1, addr.size(), f) != addr.size()) exit(2);
  fclose(f);
  return ccl::create_kvs(addr);
}

int main(int argc, char **argv) {
  int rank = bench_env_rank(), nranks = bench_env_size();
  bench_pin(rank);
  bench_args a = bench_parse(argc, argv);
  ccl::init();
  bench_t b;
  bench_init(&b, rank, nranks);
  auto c = ccl::create_communicator(nranks, rank, store(rank));
  comm = &c;
  void *send = bench_alloc(a.max), *recv = a.places[1] ? bench_alloc(a.max) : nullptr;
  bench_lib lib = {prepare, call};
  int rc = bench_sweep(&b, &a, &lib, send, recv);
  op = nullptr;
  return rc;
}
