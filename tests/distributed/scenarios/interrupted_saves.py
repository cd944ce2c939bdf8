"""Saves that are killed, that fail, and that run in the background."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from tpinit.runtime.checkpoint import folders, hashed_file
from tpinit.runtime.checkpoint import save as saving

from scenarios.save_load import differing, engine, held, train
from support.refusals import error_of, in_step


def _kill(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _second_rename(patch: pytest.MonkeyPatch) -> None:
    """Kill the process where it renames the folder that it wrote: the one it replaces has another name by then."""
    rename = os.rename
    patch.setattr(os, "rename", lambda old, new: _kill() if str(old).endswith(".saving") else rename(old, new))


# By name: the rank that is killed, and where in its second save.
POINTS: dict[str, tuple[int, Callable[[pytest.MonkeyPatch], None]]] = {
    "written": (1, lambda patch: patch.setattr(hashed_file.HashedFile, "sync", _kill)),
    "manifest": (0, lambda patch: patch.setattr(folders, "write_synced", _kill)),
    "between the renames": (0, _second_rename),
    "in place": (0, lambda patch: patch.setattr(folders, "write_latest", _kill)),
}


def killed(rank: int, folder: str, point: str, second: str) -> None:
    """Save after one update as "first", and die while saving as `second` after the next."""
    made = engine(2)
    train(made, 1)
    made.save_checkpoint(folder, tag="first")
    train(made, 1)
    victim, arm = POINTS[point]
    with pytest.MonkeyPatch.context() as patch:
        if rank == victim:
            arm(patch)
        made.save_checkpoint(folder, tag=second)


def recover(rank: int, folder: str, second: str) -> dict[str, Any]:
    """Load the last checkpoint, train, and save as `second` again; return the updates that were found each time."""
    made = engine(2, seed=1)
    latest = (Path(folder) / "latest").read_text()
    path, _ = made.load_checkpoint(folder)
    found = made.global_steps
    train(made, 4)
    made.save_checkpoint(folder, tag=second)
    later = engine(2, seed=2)
    later.load_checkpoint(folder)
    return {
        "latest": latest,
        "path": Path(path or "").name,
        "found": found,
        "later": later.global_steps,
        "different": differing(held(made), held(later)),
        "names": sorted(path.name for path in Path(folder).iterdir()),
        "in_step": in_step(rank),
    }


def _full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fails(rank: int, folder: str) -> dict[str, Any]:
    """Save while the disk of rank 1 is full, then while that of rank 0 is, also in the background."""
    made = engine(2)
    made.save_checkpoint(folder, tag="good")
    errors = []
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(hashed_file.HashedFile, "write", _full)
        errors.append(error_of(lambda: made.save_checkpoint(folder, tag="bad")))
        made.save_checkpoint(folder, tag="bad", async_save=True)
        errors.append(error_of(lambda: made.save_checkpoint(folder, tag="late")))
    with pytest.MonkeyPatch.context() as patch:
        if rank == 0:
            patch.setattr(folders, "write_synced", _full)
        errors.append(error_of(lambda: made.save_checkpoint(folder, tag="bad")))
    dist.barrier()  # rank 0 removes what it wrote after the error
    names = sorted(path.name for path in Path(folder).iterdir())
    train(made, 1)
    made.save_checkpoint(folder, tag="next")
    latest = (Path(folder) / "latest").read_text()
    return {"errors": errors, "names": names, "latest": latest, "in_step": in_step(rank)}


def background(rank: int, folder: str) -> dict[str, Any]:
    """Save in the background, train on at once, save 3 more; the first one must hold what was then."""
    made = engine(2, dtype="bf16")
    train(made, 2)
    with pytest.MonkeyPatch.context() as patch:
        slow, write = folders.commit, []
        patch.setattr(saving.folders, "commit", lambda *args: (dist_sleep(), write.append(1), slow(*args))[2])
        made.save_checkpoint(folder, tag="a", async_save=True)
        saved = held(made)
        train(made, 2)
        running = not (Path(folder) / "a").exists()
        loaded = engine(2, dtype="bf16", seed=1)
        made.save_checkpoint(folder, tag="b", keep_last=2)  # waits
    waited = (Path(folder) / "a").exists()
    loaded.load_checkpoint(folder, tag="a")
    different = differing(saved, held(loaded))
    dist.barrier()
    made.save_checkpoint(folder, tag="c", keep_last=2)
    made.save_checkpoint(folder, tag="d", keep_last=2, save_latest=False)
    made.save_checkpoint(folder, tag="e", async_save=True)
    made.destroy()  # waits
    return {
        "running": running,
        "waited": waited,
        "different": different,
        "names": sorted(path.name for path in Path(folder).iterdir()),
        "in_step": in_step(rank),
    }


def dist_sleep() -> None:
    """Wait until the training has gone on."""
    import time

    time.sleep(2)
