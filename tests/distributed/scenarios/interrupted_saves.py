"""Saves that are killed, that fail, and that run in the background."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
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
    "manifest": (0, lambda patch: patch.setattr(folders, "sync_file", _kill)),
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


@contextlib.contextmanager
def small_files(here: bool) -> Iterator[None]:
    """On this rank, or not, let no file grow over a few bytes: the write fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if here:
        resource.setrlimit(resource.RLIMIT_FSIZE, (256, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fails(rank: int, folder: str) -> dict[str, Any]:
    """Save where one rank can't write: rank 1, also in the background, then rank 0; then to a file, not a folder."""
    made = engine(2)
    made.save_checkpoint(folder, tag="good")
    errors = []
    with small_files(rank == 1):
        errors.append(error_of(lambda: made.save_checkpoint(folder, tag="bad")))
        made.save_checkpoint(folder, tag="bad", async_save=True)
        errors.append(error_of(lambda: made.save_checkpoint(folder, tag="late")))
    with small_files(rank == 0):
        errors.append(error_of(lambda: made.save_checkpoint(folder, tag="bad")))
        errors.append(error_of(lambda: made.save_16bit_model(folder)))
    errors.append(error_of(lambda: made.save_checkpoint(f"{folder}/latest", tag="bad")))
    dist.barrier()  # rank 0 removes what it wrote after the error
    names = sorted(path.name for path in Path(folder).iterdir())
    train(made, 1)
    made.save_checkpoint(folder, tag="next")
    latest = (Path(folder) / "latest").read_text()
    return {"errors": errors, "names": names, "latest": latest, "in_step": in_step(rank)}


def fills(rank: int, folder: str) -> dict[str, Any]:
    """Save to a disk of a few MB with less and less room missing, then to the same disk, full and read-only.

    The errors are given by the number of blocks that were free; a checkpoint takes `blocks`.
    """
    disk, filler = Path(folder), Path(folder) / "filler"
    made = engine(2)
    train(made, 1)
    empty = os.statvfs(disk)
    made.save_checkpoint(disk, tag="good")
    blocks = empty.f_bfree - os.statvfs(disk).f_bfree - 1  # without that of `latest`
    weights = {name: value.detach().clone() for name, value in made.module.named_parameters()}
    train(made, 1)

    def room(count: int) -> None:
        dist.barrier()
        if rank == 0:
            filler.unlink(missing_ok=True)
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, (os.statvfs(disk).f_bfree - count) * empty.f_bsize)
        dist.barrier()

    cases = {}
    for count in (0, 2, blocks // 2, blocks - 8, *range(blocks - 3, blocks + 2)):
        room(count)
        error = error_of(lambda: made.save_checkpoint(disk, tag="bad"))
        dist.barrier()  # rank 0 removes what it wrote after the error
        cases[count - blocks] = {**error, "latest": (disk / "latest").read_text(), "names": names_in(disk)}
        dist.barrier()
        if rank == 0:
            shutil.rmtree(disk / "bad", ignore_errors=True)
    room(0)
    exports = {"save_16bit_model": made.save_16bit_model, "save_pretrained": made.save_pretrained}
    full = {name: error_of(lambda: call(str(disk / "export"))) for name, call in exports.items()}  # noqa: B023  # called here
    left = names_in(disk / "export")
    dist.barrier()
    gc.collect()  # what a failed write left open would keep the disk writable
    dist.barrier()
    mounted = subprocess.run(["mount", "-o", "remount,ro", folder], capture_output=True, text=True)
    dist.barrier()
    exports["save_checkpoint"] = made.save_checkpoint
    read_only = {name: error_of(lambda: call(folder)) for name, call in exports.items()}  # noqa: B023  # called here
    later = engine(2, seed=1)
    later.load_checkpoint(folder, tag="good")
    return {
        "cases": cases,
        "full": full,
        "left": left,
        "mounted": mounted.stderr,
        "read-only": read_only,
        "different": differing(weights, dict(later.module.named_parameters())),
        "in_step": in_step(rank),
    }


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


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
