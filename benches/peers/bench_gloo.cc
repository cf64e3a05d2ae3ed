// Gloo's own C++ API over TCP on loopback, the only transport it has without RDMA. GLOO_BCUBE=1
// takes its second algorithm.
#include "sweep.h"
#include <functional>
#include <gloo/allreduce.h>
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
static void allreduce(void *send, void *recv, size_t n) {
  gloo::AllreduceOptions o(ctx);
  if (send != recv) o.setInput(static_cast<T *>(send), n);
  o.setOutput(static_cast<T *>(recv), n);
  o.setAlgorithm(getenv("GLOO_BCUBE") ? gloo::AllreduceOptions::Algorithm::BCUBE : gloo::AllreduceOptions::Algorithm::RING);
  o.setReduceFunction(static_cast<void (*)(void *, const void *, const void *, size_t)>(&gloo::sum<T>));
  gloo::allreduce(o);
}
static int prepare(bench_dtype d, void *send, void *recv, size_t n) {
  if (d == BENCH_BF16) return 1;
  op = [=] { d == BENCH_F32 ? allreduce<float>(send, recv, n) : allreduce<gloo::float16>(send, recv, n); };
  return 0;
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
  bench_lib lib = {prepare, call};
  return bench_sweep(&b, &a, &lib, send, recv);
}
