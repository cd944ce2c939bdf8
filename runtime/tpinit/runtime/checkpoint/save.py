"""Saving: all ranks write their chunks to a temporary folder, and the first rank puts the complete one in its place."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tpinit.reference.errors import TpinitError
from tpinit.runtime.checkpoint import folders
from tpinit.runtime.checkpoint.dcp_writer import DCP_INDEX, WrittenFile, check_files, index_of, write_chunks
from tpinit.runtime.checkpoint.manifest import SUMS, Manifest, sha256_of
from tpinit.runtime.checkpoint.places import Write
from tpinit.runtime.checkpoint.ranks import agree, checkpoint_group, on_first_rank
from tpinit.runtime.errors import CheckpointError
from tpinit.runtime.groups.issuing import collective

__all__ = ["BackgroundSave", "SaveOptions", "save", "write_manifest"]

_log = logging.getLogger("tpinit")


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """Where a checkpoint goes: folder `tag` in `folder`. `keep_last` None removes no older ones."""

    folder: Path
    tag: str
    latest: bool = True
    keep_last: int | None = None


class BackgroundSave:
    """A save that runs beside the training. It holds copies of the tensors."""

    def __init__(self, run: Callable[[], None]) -> None:
        self._error: CheckpointError | None = None
        self._thread = threading.Thread(target=self._run, args=(run,), name="tpinit checkpoint")
        self._thread.start()

    def _run(self, run: Callable[[], None]) -> None:
        try:
            run()
        except CheckpointError as error:
            self._error = error
            _log.error("the save in the background failed: %s", error)  # the program may end without another call
        except Exception as error:  # the thread must not print it: it is raised by `wait`
            lost = "; torch.distributed was destroyed: call engine.destroy() first"
            gone = "" if dist.is_initialized() else lost
            self._error = CheckpointError(f"the save in the background failed: {type(error).__name__}: {error}{gone}")

    def wait(self) -> None:
        """Wait until it ended. Raises the CheckpointError that ended it, once."""
        self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error


def save(
    writes: Sequence[Write], page: Mapping[str, Any], options: SaveOptions, background: bool = False
) -> BackgroundSave | None:
    """Write a checkpoint: every rank must call this. `page` is JSON data, that of rank 0 is used.

    With `background` the tensors are copied to the CPU, and the writing goes on in a thread. Raises CheckpointError on
    all ranks if one of them fails; the checkpoints that were there before are then as they were.
    """
    on_first_rank("the checkpoint", lambda: folders.make_temporary(options.folder, options.tag))
    if not background:
        _write(writes, page, options)
        return None
    copies = [replace(write, values=write.values.detach().to("cpu", copy=True)) for write in writes]
    return BackgroundSave(lambda: _write(copies, page, options))


def _write(writes: Sequence[Write], page: Mapping[str, Any], options: SaveOptions) -> None:
    began = time.monotonic()
    folder = folders.temporary(options.folder, options.tag)
    size = sum(write.values.nbytes for write in writes)
    _log.debug("checkpoint %s: this rank writes %d tensors, %d bytes", options.tag, len(writes), size)
    try:
        own = agree("write a checkpoint", lambda _: _write_own(folder, writes))
        files = _gather(own)
        on_first_rank("the checkpoint", lambda: _finish(files, page, options))
    except TpinitError:  # also where another rank ended: nobody else removes the folder
        if dist.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if dist.get_rank() == 0:
        total, seconds = sum(file.size for file in files), time.monotonic() - began
        _log.info(
            "saved %s: %.1f MB in %d files, %.1f s, %.0f MB/s", options.folder / options.tag, total / 1e6, len(files),
            seconds, total / 1e6 / max(seconds, 1e-3),
        )  # fmt: skip


def _write_own(folder: Path, writes: Sequence[Write]) -> WrittenFile | None:
    rank = dist.get_rank()
    try:
        return write_chunks(folder, rank, writes)
    except OSError as failure:
        raise CheckpointError(f"rank {rank}: the checkpoint could not be written: {failure}") from failure


def _gather(own: WrittenFile | None) -> list[WrittenFile]:
    """Return on the first rank what all ranks wrote; empty on the others."""
    first = dist.get_rank() == 0
    gathered: list[WrittenFile | None] | None = [None] * dist.get_world_size() if first else None
    collective("gather_object", "what the ranks wrote", own, gathered, group=checkpoint_group())
    return [file for file in gathered or () if file is not None]


def _finish(files: Sequence[WrittenFile], page: Mapping[str, Any], options: SaveOptions) -> None:
    """Write the manifest and the sums, and put the checkpoint in its place."""
    write_manifest(files, page, folders.temporary(options.folder, options.tag))
    folders.commit(options.folder, options.tag)
    if options.latest:
        folders.write_latest(options.folder, options.tag)
    if options.keep_last is not None:
        folders.remove_old(options.folder, options.keep_last, options.tag)


def write_manifest(files: Sequence[WrittenFile], page: Mapping[str, Any], folder: Path) -> None:
    """Write the manifest, torch's index and the sums of what the ranks wrote. Raises CheckpointError or OSError."""
    sizes = {file.name: file.size for file in files}
    contents = {
        folders.MANIFEST: Manifest(check_files(files), sizes, page).to_bytes(),
        DCP_INDEX: index_of(files),
    }
    sums = {file.name: file.sum for file in files} | {name: sha256_of([data]) for name, data in contents.items()}
    contents[SUMS] = "".join(f"{value}  {name}\n" for name, value in sorted(sums.items())).encode()
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    for name in contents:  # the first of them syncs most of all
        folders.sync_file(folder / name)
