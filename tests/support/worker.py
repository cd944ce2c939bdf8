"""One rank of a test world: joins the others, then runs one scenario after another.

    python -m support.worker RANK SIZE FOLDER [BACKEND]

A job is read from standard input: a pickled pair of "module:function" and keyword arguments. The function is called
with the rank and the arguments; the folder gets a pickled pair of True and the result, or of False and the traceback.
A job without a function ("module:") imports the module. None, or the end of the input, ends the process.

Between two jobs the process groups that nothing holds any more are destroyed: a thread of each gloo group wakes a
hundred times a second, and a few hundred of them keep a small machine busy.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any


def main() -> None:
    rank, size, home = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    backend = sys.argv[4] if len(sys.argv) > 4 else "gloo"
    jobs = os.fdopen(os.dup(0), "rb")
    with open(os.devnull, "rb") as nothing:  # what a scenario starts must not read the jobs
        os.dup2(nothing.fileno(), 0)
    threading.Thread(target=exit_with_parent, args=(os.getppid(),), daemon=True).start()
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(str(home / "store"), size)
    options = {"store": store, "rank": rank, "world_size": size, "timeout": timedelta(seconds=40)}
    if backend == "nccl":
        torch.cuda.set_device(rank)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=torch.device("cuda", rank), **options)
    else:
        dist.init_process_group(backend, **options)
    write_result(home / f"ready.{rank}.out", (True, None))
    references = references_of_torch()
    count = 0
    while (job := next_job(jobs)) is not None:
        free_groups(references)  # here, when all ranks have done the job before
        write_result(home / f"job{count}.{rank}.out", result_of(job, rank))
        count += 1
    dist.destroy_process_group()


def next_job(jobs: Any) -> tuple[str, dict[str, Any]] | None:
    try:
        job: tuple[str, dict[str, Any]] | None = pickle.load(jobs)
    except EOFError:
        return None
    return job


def references_of_torch() -> int:
    """Return how many references torch itself holds to a process group."""
    import torch.distributed as dist

    group = dist.new_group(list(range(dist.get_world_size())))
    dist.barrier(group)
    references = sys.getrefcount(group) - 1  # of the name here
    dist.barrier()
    dist.destroy_process_group(group)
    return references


def free_groups(references: int) -> None:
    """Destroy the process groups of earlier jobs to which only torch holds references."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    gc.collect()
    for group in [*distributed_c10d._world.pg_map]:
        if group is not dist.group.WORLD and sys.getrefcount(group) - 2 <= references:  # of the list and the name
            dist.destroy_process_group(group)


def result_of(job: tuple[str, dict[str, Any]], rank: int) -> tuple[bool, Any]:
    scenario, arguments = job
    name, _, function = scenario.partition(":")
    try:
        module = importlib.import_module(name)
        if function:
            return True, getattr(module, function)(rank, **arguments)
    except Exception:
        return False, traceback.format_exc()
    # Imported modules live as long as the process: the garbage collector need not scan them at every collection.
    gc.collect()
    gc.freeze()
    return True, None


def exit_with_parent(parent: int) -> None:
    """End this process when the test run that started it is gone, however it ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def write_result(path: Path, value: object) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(pickle.dumps(value))
    partial.rename(path)


if __name__ == "__main__":
    main()
