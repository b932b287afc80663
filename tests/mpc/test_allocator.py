"""What a process keeps of freed memory."""

import ctypes
import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, sys
from pathlib import Path
import numpy as np
from mpc import allocator

allocator.one_arena()
if sys.argv[1] == "keep":
    allocator.keep_freed()

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def filled():
    numbers = np.empty(8 << 20, np.int64)
    numbers[::512] = 1  # a number of each page

filled()
before, held = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, resident()
for _ in range(3):
    filled()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
allocator.give_back()
print(json.dumps({"faults": faults, "given": held - resident()}))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library's allocator")
def test_what_was_freed_is_there_until_it_is_given_back() -> None:
    """64 MiB, four times: 16 384 pages or, where the system has larger ones for them, 32."""
    found = {}
    for how in ("keep", "not"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        found[how] = json.loads(done.stdout)
    assert found["keep"]["faults"] < 20 < found["not"]["faults"]
    assert found["keep"]["given"] > 60 << 20 > found["not"]["given"]
