"""What a process keeps of the memory that it has freed."""

import subprocess
import sys

PROGRAM = """
import ctypes, resource
from services.lifecycle import keep_memory

ROUNDS, SIZE = 6, 48 << 20  # larger than what glibc keeps unasked
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(ROUNDS):
        block = libc.malloc(ctypes.c_size_t(SIZE))
        ctypes.memset(block, 1, SIZE)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(new_pages())
keep_memory()
print(new_pages())
"""


def test_a_freed_block_is_used_again() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    before, after = map(int, run.stdout.split())
    assert after < before / 3  # once, and not six times
