// Intel oneCCL on the CPU, its C++ API.
#include "sweep.h"
#include <functional>
#include <oneapi/ccl.hpp>
#include <string>
#include <vector>

static ccl::communicator *comm;
static std::function<void()> op;
static void call() { op(); }

// Cached schedules are oneCCL's advice for operations that repeat.
template <class A>
static A cached(const bench_job *j, int root) {
  auto attr = ccl::create_operation_attr<A>();
  std::string id = bench_cname(j->what);
  id += std::string(bench_dname(j->dtype)) + (j->in_place ? "in" : "out") + std::to_string(j->count) + "r" + std::to_string(root);
  attr.template set<ccl::operation_attr_id::to_cache>(true);
  attr.template set<ccl::operation_attr_id::match_id>(ccl::string_class(id.c_str()));
  return attr;
}

static bench_op prepare(const bench_job *j) {
  auto dt = j->dtype == BENCH_F32 ? ccl::datatype::float32 : j->dtype == BENCH_F16 ? ccl::datatype::float16 : ccl::datatype::bfloat16;
  void *send = j->send, *recv = j->recv;
  size_t n = j->count;
  switch (j->what) {
  case BENCH_ALL_REDUCE: {
    auto attr = cached<ccl::allreduce_attr>(j, 0);
    op = [=] { ccl::allreduce(send, recv, n, dt, ccl::reduction::sum, *comm, attr).wait(); };
    break;
  }
  case BENCH_ALL_GATHER: {
    auto attr = cached<ccl::allgather_attr>(j, 0);
    op = [=] { ccl::allgather(send, recv, n, dt, *comm, attr).wait(); };
    break;
  }
  case BENCH_REDUCE_SCATTER: {
    auto attr = cached<ccl::reduce_scatter_attr>(j, 0);
    op = [=] { ccl::reduce_scatter(send, recv, n, dt, ccl::reduction::sum, *comm, attr).wait(); };
    break;
  }
  case BENCH_BROADCAST: {
    if (!j->in_place) return nullptr;
    std::vector<ccl::broadcast_attr> attrs;
    for (int r = 0; r < comm->size(); r++) attrs.push_back(cached<ccl::broadcast_attr>(j, r));
    op = [=] {
      int root = bench_root(comm->size());
      ccl::broadcast(recv, n, dt, root, *comm, attrs[root]).wait();
    };
    break;
  }
  case BENCH_ALL_TO_ALL: {
    auto attr = cached<ccl::alltoall_attr>(j, 0);
    op = [=] { ccl::alltoall(send, recv, n, dt, *comm, attr).wait(); };
    break;
  }
  default: op = [] { ccl::barrier(*comm).wait(); };
  }
  return call;
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
  bench_lib lib = {prepare, nullptr, nullptr, nullptr};
  int rc = bench_sweep(&b, &a, &lib, send, recv);
  op = nullptr;
  return rc;
}
