"""What every command shares."""

import platform
import subprocess
import sys

import pytest

REUSE = """
import ctypes, resource, sys, threading
from experiments.entry import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
faults = []
def work():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(50_000_000))
    libc.memset(block, 1, 50_000_000)
    libc.free(block)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
for _ in range(4):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(faults[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of glibc")
def test_freed_memory_is_reused():
    """50 MB are 12,207 pages, of which none needs to be asked for a second time."""

    def faults(argument):
        done = subprocess.run(
            [sys.executable, "-c", REUSE, argument], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults("keep") < 100 < 10_000 < faults("leave")
