"""One rank of a test world: joins the others, then runs one scenario after another.

    python -m support.worker RANK SIZE FOLDER [BACKEND]

A job is read from standard input: a pickled pair of "module:function" and keyword arguments. The function is called
with the rank and the arguments; the folder gets a pickled pair of True and the result, or of False and the traceback.
A job without a function ("module:") imports the module. None, or the end of the input, ends the process.
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
    count = 0
    while (job := next_job(jobs)) is not None:
        write_result(home / f"job{count}.{rank}.out", result_of(job, rank))
        count += 1
    dist.destroy_process_group()


def next_job(jobs: Any) -> tuple[str, dict[str, Any]] | None:
    try:
        job: tuple[str, dict[str, Any]] | None = pickle.load(jobs)
    except EOFError:
        return None
    return job


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
