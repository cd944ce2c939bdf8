"""One rank of a test world: joins the others, then runs one scenario after another."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path


def main() -> None:
    rank, size, home = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    jobs = os.fdopen(os.dup(0), "rb")
    with open(os.devnull, "rb") as nothing:  # whatever a scenario starts reads no jobs
        os.dup2(nothing.fileno(), 0)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    import coarse_scenarios
    import cost_scenarios
    import family_scenarios
    import loading_scenarios
    import more_scenarios
    import plan_scenarios
    import scenarios
    import sequence_scenarios
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(str(home / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=40))
    # What was imported stays: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    answer(home / f"ready.{rank}.out", (True, None))
    count = 0
    while True:
        try:
            job = pickle.load(jobs)
        except EOFError:
            break
        if job is None:
            break
        scenario, arguments = job
        try:
            result = (
                True,
                next(
                    getattr(module, scenario)
                    for module in (
                        coarse_scenarios,
                        cost_scenarios,
                        family_scenarios,
                        loading_scenarios,
                        more_scenarios,
                        plan_scenarios,
                        scenarios,
                        sequence_scenarios,
                    )
                    if hasattr(module, scenario)
                )(rank, **arguments),
            )
        except Exception:
            result = (False, traceback.format_exc())
        answer(home / f"job{count}.{rank}.out", result)
        count += 1
    dist.destroy_process_group()


def end_with(parent: int) -> None:
    """End this process when the test run that started it is gone, however it ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def answer(path: Path, value: object) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(pickle.dumps(value))
    partial.rename(path)


if __name__ == "__main__":
    main()
