"""How graccl and each peer is started. A variant is the same library with other flags."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

LIMIT_S = 240  # one launch: a few sizes of one library

# aN: the collective's algorithm N by the library's own numbers (Open MPI: coll_tuned_*_algorithm, Intel MPI:
# I_MPI_ADJUST_*; allreduce: Open MPI 4 ring, 6 Rabenseifner, Intel MPI 2 Rabenseifner, 8 ring). sm: Open MPI's
# collectives in shared memory. On this kind of machine the defaults are often far from the best.
VARIANTS = {
    "ompi4": r"a\d+|sm",
    "ompi5": r"a\d+|sm|eager",
    "mpich4": "none",
    "mpich5": "c3|none|raben",
    "impi": r"a\d+|avx2(a\d+)?|async",
    "oneccl": "",
    "gloo": "bcube",
    "torch": "",
}
TCP_ONLY = {"gloo", "torch"}
IMPI_NAMES = {"all_reduce": "ALLREDUCE", "all_gather": "ALLGATHER", "reduce_scatter": "REDUCE_SCATTER_BLOCK", "broadcast": "BCAST",
              "all_to_all": "ALLTOALL", "barrier": "BARRIER"}
OMPI_NAMES = {k: v.lower() for k, v in IMPI_NAMES.items()}


def known(peer):
    """Whether this is a peer[/variant] that we can start."""
    name, _, variant = peer.partition("/")
    return name in VARIANTS and (not variant or re.fullmatch(VARIANTS[name], variant) is not None)


# Ranks without an MPI launcher: N COMMAND. One that fails is noticed when those before it have ended, at the latest
# at their own deadline.
SPAWN = """n=$1; shift; ranks=()
for ((r = 0; r < n; r++)); do RANK=$r LOCAL_RANK=$r "$@" & ranks+=($!); done
for p in "${ranks[@]}"; do
  wait "$p" || { rc=$?; sleep 1; kill $(jobs -p) 2>/dev/null; exit $rc; }
done"""


class Launcher:
    def __init__(self, build, graccl_bench, log):
        self.build, self.graccl_bench, self.log = build, graccl_bench, log
        self.work = tempfile.mkdtemp(prefix="graccl-peers-")
        self.shm = f"/dev/shm/graccl-peers.{os.getpid()}"

    def close(self):
        shutil.rmtree(self.work, ignore_errors=True)
        self._remove_shm()

    def _remove_shm(self):
        if os.path.exists(self.shm):
            os.unlink(self.shm)

    def installed(self, peer):
        name = peer.partition("/")[0]
        if name == "graccl":
            return True
        return os.path.exists(os.path.join(self.build, "bench", name + (".so" if name == "torch" else "")))

    def run(self, case, peer, sizes):
        """One launch. Returns (its rows, each a list of columns, and what went wrong or None)."""
        name, _, variant = peer.partition("/")
        store, rows = os.path.join(self.work, "store"), os.path.join(self.work, "rows")
        shutil.rmtree(store, ignore_errors=True)
        os.mkdir(store)
        open(rows, "w").close()
        self._remove_shm()
        crowded = case.ranks > os.cpu_count()
        argv, env, spawn = self._command(name, variant, case, crowded)
        env.update(
            BENCH_PEER=peer, BENCH_TRANSPORT=case.transport, BENCH_OUT=rows, BENCH_SHM=self.shm, BENCH_STORE=store,
            BENCH_WRITE=str(int(case.write)),
            # More ranks than cores must share them fairly, so not there. Gloo and torch sleep.
            # overlap puts only the thread that computes there.
            BENCH_RT=str(int((not crowded or name in TCP_ONLY) and case.collective != "overlap")),
        )
        if case.collective == "overlap":
            argv += ["--overlap", str(sizes[0])]
        else:
            argv += ["--collective", case.collective]
            if case.collective != "barrier":
                argv += ["--sizes", ",".join(map(str, sizes)), "--dtype", case.dtype, "--place", case.place]
        if name == "graccl":
            argv += ["--memory", variant or "host"]
        with open(self.log, "a+b") as log:
            log.write(f"\n## {peer} {case.name}: {' '.join(argv)}\n".encode())
            log.flush()
            begin = log.tell()
            code = self._wait(self._start(argv, env, case.ranks if spawn else 1, spawn, log))
            log.seek(begin)
            said = list(dict.fromkeys(log.read().decode(errors="replace").strip().splitlines()))
        self._remove_shm()
        with open(rows) as f:
            got = [line.rstrip("\n").split("\t") for line in f]
        trouble = None
        if code:
            trouble = f"ended with {code}" if code != "late" else f"took more than {LIMIT_S} s"
            trouble += "".join(f"\n    {s}" for s in said[-4:])
        elif not got:
            trouble = "no rows" + "".join(f"\n    {s}" for s in said[-4:])
        return got, trouble

    def _start(self, argv, env, n, spawn, log):
        """One session for all ranks, as a launcher has: a late launch can be ended with all that it started,
        and where the kernel groups tasks by session, a rank that yields gives way to the others."""
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        own = dict(os.environ, **env)
        for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            own.pop(k, None)
        if spawn:
            own.update(WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            argv = ["bash", "-c", SPAWN, "spawn", str(n)] + argv
        return [subprocess.Popen(argv, env=own, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)]

    def _wait(self, jobs):
        end = time.monotonic() + LIMIT_S
        try:
            while True:
                codes = [j.poll() for j in jobs]
                if all(c == 0 for c in codes):
                    return 0
                bad = [c for c in codes if c]
                if bad:
                    time.sleep(1)  # the others may have something to say about it
                    return bad[0]
                if time.monotonic() > end:
                    return "late"
                time.sleep(0.05)
        finally:
            self._end([j for j in jobs if j.poll() is None])

    def _end(self, jobs):
        """Politely first: an MPI launcher then ends its ranks itself."""
        for sig, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            for j in jobs:
                if j.poll() is None:
                    os.killpg(j.pid, sig)
            end = time.monotonic() + patience
            while any(j.poll() is None for j in jobs) and time.monotonic() < end:
                time.sleep(0.05)

    def _command(self, name, variant, case, crowded):
        """(argv, environment, whether every rank is a process that we start)."""
        b, tcp, n = self.build, case.transport == "tcp", str(case.ranks)
        binary, env = os.path.join(b, "bench", name), {}
        lo = {"FI_PROVIDER": "tcp", "FI_TCP_IFACE": "lo"}
        if name == "graccl":
            env = {"GRACCL_TRANSPORT": case.transport, "GRACCL_SOCKET_IFNAME": "lo"}
            return [self.graccl_bench], env, True
        if name == "gloo":
            return [binary], {"GLOO_BCUBE": "1"} if variant == "bcube" else {}, True
        if name == "torch":
            env = {"BENCH_LIB": binary + ".so", "GLOO_SOCKET_IFNAME": "lo"}
            script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bench_torch.py")
            return [os.path.join(b, "venv-torch/bin/python"), script], env, True
        if name in ("ompi4", "ompi5"):
            argv = ["mpirun.openmpi" if name == "ompi4" else os.path.join(b, "venv-openmpi/bin/mpirun")]
            argv += ["--bind-to", "none", "--oversubscribe", "-np", n, "--mca", "pml", "ob1"]
            shm = "vader,self" if name == "ompi4" else "sm,self"
            argv += ["--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"] if tcp else ["--mca", "btl", shm]
            if crowded:
                argv += ["--mca", "mpi_yield_when_idle", "1"]
            if variant == "eager":
                argv += ["--mca", "btl_sm_eager_limit", "65536", "--mca", "btl_sm_max_send_size", "131072"]
            elif variant == "sm":
                argv += ["--mca", "coll_sm_priority", "100"]
            elif variant:
                argv += ["--mca", "coll_tuned_use_dynamic_rules", "1"]
                argv += ["--mca", f"coll_tuned_{OMPI_NAMES[case.collective]}_algorithm", variant[1:]]
            return argv + [binary], {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}, False
        if name == "mpich4":
            env = {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo"} if tcp else {}
            if variant == "none":
                env["MPIR_CVAR_DEVICE_COLLECTIVES"] = "none"
            return ["mpiexec.mpich", "-bind-to", "none", "-n", n, binary], env, False
        if name == "mpich5":
            env = {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", **lo} if tcp else {}
            if variant == "c3":  # no reduce-then-broadcast inside a node
                env["MPIR_CVAR_ALLREDUCE_COMPOSITION"] = "3"
            elif variant:  # the generic algorithms
                env["MPIR_CVAR_DEVICE_COLLECTIVES"] = "none"
            if variant == "raben":
                env["MPIR_CVAR_ALLREDUCE_INTRA_ALGORITHM"] = "reduce_scatter_allgather"
            return [os.path.join(b, "venv-mpich/bin/mpiexec"), "-bind-to", "none", "-n", n, binary], env, False
        root = os.path.join(b, "venv-impi" if name == "impi" else "venv-ccl")
        env = {"I_MPI_ROOT": root, "LD_LIBRARY_PATH": root + "/lib", "FI_PROVIDER_PATH": root + "/lib", "I_MPI_PIN": "off"}
        if name == "impi":
            env.update({"I_MPI_FABRICS": "ofi", "I_MPI_COLL_INTRANODE": "pt2pt", **lo} if tcp else {"I_MPI_FABRICS": "shm"})
            if variant.startswith("avx2"):
                env["I_MPI_SHM"] = "bdw_avx2"
            if variant == "async":
                env["I_MPI_ASYNC_PROGRESS"] = "1"
            algorithm = re.search(r"a(\d+)$", variant)
            if algorithm:
                env["I_MPI_ADJUST_" + IMPI_NAMES[case.collective]] = algorithm[1]
        else:
            # with its worker thread, caller and worker fight for the one core of a pinned rank
            env.update(CCL_ROOT=root, CCL_WORKER_OFFLOAD="0", CCL_LOG_LEVEL="error")
            env.update({"CCL_ATL_TRANSPORT": "ofi", "CCL_ATL_SHM": "0", **lo} if tcp else {"CCL_ATL_TRANSPORT": "mpi", "I_MPI_FABRICS": "shm"})
            if crowded:
                env["CCL_YIELD"] = "sched_yield"
        return [root + "/bin/mpiexec.hydra", "-n", n, binary], env, False
