// Gloo's own C++ API over TCP on loopback, the only transport it has without RDMA. GLOO_BCUBE=1
// takes its second allreduce algorithm. Its one reduce_scatter overwrites the data that it sends, so
// it is not here.
#include "sweep.h"
#include <functional>
#include <gloo/allgather.h>
#include <gloo/allreduce.h>
#include <gloo/alltoall.h>
#include <gloo/barrier.h>
#include <gloo/broadcast.h>
#include <gloo/math.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/types.h>
#include <memory>

static std::shared_ptr<gloo::rendezvous::Context> ctx;
static std::function<void()> op;
static void call() { op(); }

template <class T>
static void allreduce(const bench_job &j) {
  gloo::AllreduceOptions o(ctx);
  if (!j.in_place) o.setInput(static_cast<T *>(j.send), j.count);
  o.setOutput(static_cast<T *>(j.recv), j.count);
  o.setAlgorithm(getenv("GLOO_BCUBE") ? gloo::AllreduceOptions::Algorithm::BCUBE : gloo::AllreduceOptions::Algorithm::RING);
  o.setReduceFunction(static_cast<void (*)(void *, const void *, const void *, size_t)>(&gloo::sum<T>));
  gloo::allreduce(o);
}
template <class T>
static bool prepare(const bench_job &j) {
  size_t n = j.count, all = n * ctx->size;
  T *send = static_cast<T *>(j.send), *recv = static_cast<T *>(j.recv);
  switch (j.what) {
  case BENCH_ALL_REDUCE:
    op = [=] { allreduce<T>(j); };
    return true;
  case BENCH_ALL_GATHER:
    op = [=] {
      gloo::AllgatherOptions o(ctx);
      if (!j.in_place) o.setInput(send, n);
      o.setOutput(recv, all);
      gloo::allgather(o);
    };
    return true;
  case BENCH_BROADCAST:
    op = [=] {
      gloo::BroadcastOptions o(ctx);
      int root = bench_root(ctx->size);
      if (!j.in_place && root == ctx->rank) o.setInput(send, n);
      o.setOutput(recv, n);
      o.setRoot(root);
      gloo::broadcast(o);
    };
    return true;
  case BENCH_ALL_TO_ALL:
    op = [=] {
      gloo::AlltoallOptions o(ctx);
      o.setInput(send, all);
      o.setOutput(recv, all);
      gloo::alltoall(o);
    };
    return true;
  case BENCH_BARRIER:
    op = [] {
      gloo::BarrierOptions o(ctx);
      gloo::barrier(o);
    };
    return true;
  default: return false;
  }
}
static bench_op prepare_any(const bench_job *j) {
  if (j->dtype == BENCH_BF16) return nullptr;
  return (j->dtype == BENCH_F32 ? prepare<float>(*j) : prepare<gloo::float16>(*j)) ? call : nullptr;
}

int main(int argc, char **argv) {
  int rank = bench_env_rank(), nranks = bench_env_size();
  bench_pin(rank);
  bench_args a = bench_parse(argc, argv);
  bench_t b;
  bench_init(&b, rank, nranks);
  auto device = gloo::transport::tcp::CreateDevice(gloo::transport::tcp::attr("127.0.0.1"));
  gloo::rendezvous::FileStore store(getenv("BENCH_STORE"));
  ctx = std::make_shared<gloo::rendezvous::Context>(rank, nranks);
  ctx->connectFullMesh(store, device);
  void *send = bench_alloc(a.max), *recv = a.places[1] ? bench_alloc(a.max) : nullptr;
  bench_lib lib = {prepare_any, nullptr, nullptr, nullptr};
  return bench_sweep(&b, &a, &lib, send, recv);
}
