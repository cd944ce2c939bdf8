"""What a step frees is kept: counted in pages that the system has to give anew."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

STEPS = """
import ctypes, resource, sys
from tpinit.runtime.heap import keep_freed

print(keep_freed() if sys.argv[1] == "kept" else "not asked")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
SIZE = 24 << 20

def step():
    held = [libc.malloc(SIZE) for _ in range(4)]
    for one in held:
        ctypes.memset(one, 1, SIZE)
    for one in reversed(held):
        libc.free(one)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    step()
before = faults()
for _ in range(5):
    step()
print((faults() - before) // 5)
"""


def steps(how: str, **environment: str) -> tuple[str, int]:
    kept = {name: one for name, one in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, how], env={**kept, **environment}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said, pages = done.stdout.split("\n")[:2]
    return said, int(pages)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's choice")
def test_a_step_takes_no_page_anew_that_it_had_before() -> None:
    assert steps("kept") == ("True", pytest.approx(0, abs=20))
    assert steps("as it is")[1] > 5000, "96 MB are 24,000 pages of 4 KiB"


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_ARENA_MAX", "4"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072")]
)
def test_whoever_has_said_how_malloc_works_is_left_alone(name: str, value: str) -> None:
    assert steps("kept", **{name: value})[0] == "False"
