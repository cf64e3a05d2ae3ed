"""What is compared: the cases, the bars that graccl has to reach, and the peers that matter."""

from dataclasses import dataclass

K, M = 1 << 10, 1 << 20


def size(text):
    """'64K' -> 65536."""
    unit = {"K": K, "M": M}.get(text[-1:].upper(), 1)
    return int(text[:-1] if unit > 1 else text) * unit


def human(n):
    for unit, letter in ((M, "M"), (K, "K")):
        if n >= unit and n % unit == 0:
            return f"{n // unit}{letter}"
    return str(n)


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    # (from this size on, bar near, bar far): what best peer / graccl has to reach
    bars: list
    # peer[/variant] -> sizes it is run at, "4:1K 16M:64M"; "" = all of the case's
    peers: dict
    sizes: str = "4:256M"
    collective: str = "all_reduce"
    transport: str = "shm"
    dtype: str = "f32"
    place: str = "in"  # out; "-" for a barrier, which has no buffers
    ranks: int = 2
    ours: str = "graccl"
    write: bool = False  # the owner's next write is timed too

    def all_sizes(self):
        return [0] if self.collective == "barrier" else steps(self.sizes)

    def bar(self, nbytes, state):
        found = [b for b in self.bars if b[0] <= nbytes or not nbytes]
        return found[-1][2 if state == "far" else 1] if found else None

    def sizes_of(self, peer, wanted):
        """Of the wanted sizes those at which this peer is worth its time."""
        ranges = self.peers.get(peer, "").split()
        inside = lambda n: any(size(lo) <= n <= size(hi) for lo, hi in (r.split(":") for r in ranges))
        return [n for n in wanted if not ranges or inside(n)]


def steps(ranges):
    """Sizes, or ranges of them by a factor of 4: '4:1K 64K' -> 4, 16, 64, 256, 1K, 64K."""
    out = []
    for r in ranges.split():
        lo, hi = size(r.partition(":")[0]), size(r.rpartition(":")[2])
        while lo <= hi:
            out.append(lo)
            lo *= 4
    return out


# Each peer and variant runs where it was the best, or close to it, in some state of the machine.
SHM_IN = {
    "ompi4": "4:1K",
    "mpich5/c3": "4:1K 64M:256M",
    "impi": "4:256",
    "ompi5": "4:256 1M:64M",
    "impi/avx2a2": "256:256K",
    "ompi5/eager": "64:64M",
    "mpich5": "1K:16K 256M:256M",
    "impi/a8": "16K:256M",
    "ompi4/a6": "256K:256M",
    "oneccl": "4M:64M",
}
SHM_OUT = {
    "ompi4": "4:4K",
    "ompi5": "4:256 1M:16M",
    "impi/avx2a2": "4:4M",
    "impi/a8": "1K:256M",
    "oneccl": "64K:16M",
    "ompi4/a6": "4M:64M",
}
HALF = {"impi": "64K:1M", "impi/a8": "", "oneccl": ""}
TCP_IN = {
    "mpich4": "4:16",
    "impi/a2": "4:4M",
    "impi/a8": "",
    "oneccl": "",
    "gloo": "4M:256M",
    "gloo/bcube": "4M:64M",
    "torch": "16M:256M",
}
TCP_OUT = {
    "ompi5": "4:1K",
    "impi/a8": "",
    "oneccl": "256:256M",
    "gloo": "16M:256M",
    "gloo/bcube": "4M:64M",
}
CROWD = {"ompi4": "4:4M", "ompi5": "", "impi": "4:64M", "impi/a8": "", "ompi5/a6": "4:4 16K:64M"}

SHM_BARS = [(4, 1.8, 1.8), (16 * K, 1.4, 1.1), (M, 1.2, 1.2)]
TCP_BARS = [(4, 1.2, 1.0), (64 * K, 1.3, 0.95), (256 * K, 1.0, 1.0), (M, 1.3, 0.95)]


# The other collectives.
ALL_GATHER_SHM = {
    "ompi4": "4:4K 1M:256M",
    "ompi5": "4:4K",
    "impi": "",
    "impi/a3": "4K:1M",
    "impi/a5": "1M:256M",
    "oneccl": "4M:256M",
}
ALL_GATHER_TCP = {
    "mpich4/none": "4:4K",
    "impi": "",
    "impi/a1": "",
    "ompi4/a4": "1M:256M",
    "mpich5/none": "1M:256M",
}
REDUCE_SCATTER_SHM = {
    "ompi4/a3": "4:4K",
    "ompi5": "4:4K",
    "impi": "",
    "impi/avx2": "4K:256M",
    "oneccl": "1M:256M",
    "mpich5": "4M:256M",
}
REDUCE_SCATTER_TCP = {
    "mpich4/none": "4:4K",
    "impi": "",
    "impi/a1": "4:1M",
    "oneccl": "16K:1M",
    "mpich5": "1M:256M",
}
BROADCAST_SHM = {
    "ompi4/sm": "4:4K",
    "ompi4/a1": "4:4K",
    "ompi5/a1": "4:4K",
    "impi": "",
    "impi/a1": "1K:1M",
    "impi/a7": "4K:256M",
    "impi/a4": "1M:256M",
    "ompi4/a5": "1M:256M",
    "oneccl": "4M:256M",
}
BROADCAST_TCP = {
    "mpich4/none": "4:4K",
    "impi/a8": "4:4K",
    "impi/a7": "4K:1M",
    "ompi4/a4": "16K:1M",
    "ompi5/a4": "16K:256M",
    "impi/a1": "1M:256M",
    "ompi4/a5": "1M:256M",
}
ALL_TO_ALL_SHM = {
    "ompi4": "4:4K 1M:256M",
    "ompi5": "4:4K",
    "ompi5/a1": "16K:256M",
    "impi": "4K:256M",
    "impi/a3": "",
}
ALL_TO_ALL_TCP = {
    "mpich4": "4:4K",
    "mpich4/none": "",
    "oneccl": "16K:1M",
    "ompi5/a5": "16K:256M",
    "mpich5": "1M:256M",
}
BARRIER_SHM = {"ompi4/a3": "", "ompi5/a5": "", "impi": "", "impi/a1": ""}
BARRIER_TCP = {"mpich4": "", "mpich4/none": "", "impi": "", "impi/a8": ""}


def _others(collective, place, peers_shm, peers_tcp):
    """A collective other than all_reduce, over shared memory and TCP: not slower than the best peer."""
    suffix = "" if place == "-" else "-" + place
    title = "2 ranks, shared memory (shm) and TCP on loopback (tcp)" + ("" if place == "-" else ", f32")
    if collective == "broadcast":
        title += ", every rank in turn is the root"
    return [
        Case(f"{collective}-{transport}{suffix}", title, [(4, 1.0, 1.0)], peers, sizes="8 64K 16M",
             collective=collective, transport=transport, place=place)
        for transport, peers in (("shm", peers_shm), ("tcp", peers_tcp))
    ]


def _both_places(name, title, peers_in, peers_out, bars_in, bars_out=None, **more):
    return [
        Case(f"{name}-in", f"{title}, in place", bars_in, peers_in, place="in", **more),
        Case(f"{name}-out", f"{title}, out of place", bars_out or bars_in, peers_out, place="out", **more),
    ]


CASES = [
    *_both_places(
        "shm", "f32, 2 ranks, shared memory, private buffers", SHM_IN, SHM_OUT,
        SHM_BARS + [(64 * M, 2.5, 2.5)], SHM_BARS + [(64 * M, 1.6, 1.1)],
    ),
    Case(
        "registered", "f32, 2 ranks, registered memory against graccl's private buffers, in place, the owner's next write timed",
        [(64 * K, 1.2, 1.2)], {"graccl": ""}, sizes="64K:16M", ours="graccl/registered", write=True,
    ),
    *_both_places("bf16", "bf16, 2 ranks, shared memory", HALF, HALF, [(4, 1.6, 1.6)], sizes="64K:64M", dtype="bf16"),
    *_both_places("f16", "f16, 2 ranks, shared memory", HALF, HALF, [(4, 1.3, 1.3)], sizes="64K:64M", dtype="f16"),
    *_both_places("tcp", "f32, 2 ranks, TCP on loopback", TCP_IN, TCP_OUT, TCP_BARS, transport="tcp"),
    *_both_places("shm4", "f32, 4 ranks, shared memory", CROWD, CROWD, [(4, 1.2, 1.2)], ranks=4),
    *_both_places("shm8", "f32, 8 ranks, shared memory", {**CROWD, "mpich5/none": "4K:1M"}, CROWD, [(4, 1.2, 1.2)], ranks=8),
    *_others("all_gather", "out", ALL_GATHER_SHM, ALL_GATHER_TCP),
    *_others("all_gather", "in", ALL_GATHER_SHM, ALL_GATHER_TCP),
    *_others("reduce_scatter", "out", REDUCE_SCATTER_SHM, REDUCE_SCATTER_TCP),
    *_others("broadcast", "in", BROADCAST_SHM, BROADCAST_TCP),
    *_others("all_to_all", "out", ALL_TO_ALL_SHM, ALL_TO_ALL_TCP),
    *_others("barrier", "-", BARRIER_SHM, BARRIER_TCP),
]
BY_NAME = {c.name: c for c in CASES}

COLLECTIVES = list(dict.fromkeys(c.collective for c in CASES))

# --overlap: what a non-blocking allreduce leaves of its caller's core
OVERLAP = Case("overlap", "", [], {p: "" for p in ("graccl", "ompi5", "mpich5", "impi")}, sizes="64M", collective="overlap")

# --quick: a first impression in a few minutes
QUICK_CASES = ["shm-in", "registered", "tcp-in"]
QUICK_SIZES = [4, 4 * K, 64 * K, M, 16 * M]
