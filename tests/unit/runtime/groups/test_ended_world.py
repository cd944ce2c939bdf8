"""A world that has ended leaves no thread: one of gloo that lives when the interpreter ends can abort the process."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
import torch.distributed as dist
from tpinit.runtime.checkpoint.ranks import checkpoint_group
from tpinit.runtime.groups import world

def threads():
    return len(os.listdir("/proc/self/task"))

before = threads()
world.start(0, None)
checkpoint_group()
held = dist.group.WORLD if sys.argv[1] == "held" else None
during = threads()
world.end()
print(before, during, threads(), world.started_here())
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
@pytest.mark.parametrize(("case", "ends"), [("free", True), ("held", False)])
def test_an_ended_world_has_no_threads(case, ends):
    rank = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, case], env=os.environ | rank, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    before, during, after, started = done.stdout.split()
    assert int(before) < int(during)
    assert (before == after) == ends, "the control holds the world, and so its threads"
    assert started == "False"
