# torch.distributed over Gloo, timed by the same C code (BENCH_LIB) as the others. The Python call
# costs some microseconds of every small message; that is what its users pay. In place only.
import ctypes
import os
import sys

lib = ctypes.CDLL(os.environ["BENCH_LIB"])
lib.bench_lib_pin()
import torch  # noqa: E402 (after the pinning, which its threads inherit)
import torch.distributed as dist  # noqa: E402

CALL = ctypes.CFUNCTYPE(None)
PREPARE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + os.environ["BENCH_STORE"] + "/torch", rank=rank, world_size=size)
tensor = None


def prepare(dtype, send, recv, count):
    global tensor
    if send != recv:
        return 1
    kind = DTYPES[dtype]
    raw = (ctypes.c_char * (count * kind.itemsize)).from_address(send)
    tensor = torch.frombuffer(raw, dtype=kind)
    return 0


def call():
    dist.all_reduce(tensor)


words = [ctypes.create_string_buffer(a.encode()) for a in sys.argv[1:]]
argv = (ctypes.c_void_p * len(words))(*map(ctypes.addressof, words))
status = lib.bench_lib_sweep(len(words), argv, PREPARE(prepare), CALL(call))
dist.destroy_process_group()
sys.exit(status)
