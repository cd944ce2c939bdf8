"""Saving: all ranks write their chunks to a temporary folder, and the first rank puts the complete one in its place."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from tpinit.reference.errors import TpinitError
from tpinit.runtime.checkpoint import folders
from tpinit.runtime.checkpoint.manifest import SUMS, Manifest, sha256_of
from tpinit.runtime.checkpoint.places import Write
from tpinit.runtime.checkpoint.ranks import agree, checkpoint_group, on_first_rank
from tpinit.runtime.errors import CheckpointError
from tpinit.runtime.groups.agreement import RankReport

if TYPE_CHECKING:
    from torch.distributed.checkpoint.api import CheckpointException
    from tpinit.runtime.checkpoint.dcp_writer import ChunkWriter

__all__ = ["BackgroundSave", "SaveOptions", "save", "write_manifest"]

_DCP_INDEX = ".metadata"
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
            self._error = CheckpointError(f"the save in the background failed: {type(error).__name__}: {error}")

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
    # Half a second to import, and needed by a program that saves only.
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
    from tpinit.runtime.checkpoint.dcp_writer import ChunkPlanner, ChunkWriter

    began = time.monotonic()
    folder = folders.temporary(options.folder, options.tag)
    size = sum(write.values.numel() * write.values.element_size() for write in writes)
    _log.debug("checkpoint %s: this rank writes %d tensors, %d bytes", options.tag, len(writes), size)
    writer = ChunkWriter(folder)

    def write(_: RankReport) -> None:
        try:
            dcp_save({}, storage_writer=writer, planner=ChunkPlanner(writes), process_group=checkpoint_group())
        except CheckpointException as failures:
            raise _one_error(failures) from failures

    try:
        agree("write a checkpoint", write)
        on_first_rank("the checkpoint", lambda: _finish(writer, page, options))
    except TpinitError:  # also where another rank ended: nobody else removes the folder
        if dist.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if dist.get_rank() == 0:
        total, seconds = sum(writer.files.values()), time.monotonic() - began
        _log.info(
            "saved %s: %.1f MB in %d files, %.1f s, %.0f MB/s", options.folder / options.tag, total / 1e6,
            len(writer.files), seconds, total / 1e6 / max(seconds, 1e-3),
        )  # fmt: skip


def _one_error(failures: CheckpointException) -> CheckpointError:
    """Return one error of one line for all that failed on the ranks."""
    texts: dict[str, list[int]] = {}
    for rank, (error, _) in sorted(failures.failures.items()):
        text = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
        texts.setdefault(text, []).append(rank)
    lines = [f"rank {', '.join(map(str, ranks))}: {text}" for text, ranks in texts.items()]
    return CheckpointError("the checkpoint could not be written: " + "; ".join(lines))


def _finish(writer: ChunkWriter, page: Mapping[str, Any], options: SaveOptions) -> None:
    """Write the manifest and the sums, and put the checkpoint in its place."""
    write_manifest(writer, page, folders.temporary(options.folder, options.tag))
    folders.commit(options.folder, options.tag)
    if options.latest:
        folders.write_latest(options.folder, options.tag)
    if options.keep_last is not None:
        folders.remove_old(options.folder, options.keep_last, options.tag)


def write_manifest(writer: ChunkWriter, page: Mapping[str, Any], folder: Path) -> None:
    """Write the manifest and the sums of what a writer wrote to a folder. Raises CheckpointError or OSError."""
    manifest = Manifest(writer.tensors, writer.files, page).to_bytes()
    folders.write_synced(folder / folders.MANIFEST, manifest)
    sums = {
        **writer.sums,
        folders.MANIFEST: sha256_of([manifest]),
        _DCP_INDEX: sha256_of([(folder / _DCP_INDEX).read_bytes()]),
    }
    text = "".join(f"{value}  {name}\n" for name, value in sorted(sums.items()))
    folders.write_synced(folder / SUMS, text.encode())
