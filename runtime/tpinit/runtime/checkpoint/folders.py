"""The folders of checkpoints: a new one appears at once and complete, and `latest` names one that is.

A checkpoint is written to `.TAG.saving` beside its place, and renamed when every rank has written and synced its files.
One of the same tag is first renamed to `.TAG.replaced`, and removed when the new one is in place. So at any moment the
tag is at one of two names, and `find` knows both.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tpinit.runtime.errors import CheckpointError

__all__ = [
    "LATEST",
    "MANIFEST",
    "check_tag",
    "commit",
    "find",
    "make_temporary",
    "open_file",
    "read_latest",
    "remove_old",
    "save_archive",
    "sync_file",
    "tags",
    "sync_folder",
    "temporary",
    "write_archive",
    "write_latest",
    "write_synced",
]

LATEST = "latest"
MANIFEST = "tpinit.json"
_MAX_NAME = 200  # bytes: file systems allow 255, and the temporary names are longer
_log = logging.getLogger("tpinit")


def check_tag(tag: object) -> str:
    """Return the tag as a text. Raises CheckpointError unless it can be the name of a folder."""
    text = str(tag)
    legal = bool(text) and text == text.strip() and not text.startswith(".") and text.isprintable()
    if not legal or "/" in text or "\\" in text or text == LATEST or len(os.fsencode(text)) > _MAX_NAME:
        raise CheckpointError(
            f"the tag {text[:100]!r} can't be the name of a checkpoint: give a name of one folder, without / and \\, "
            f"that does not begin with a dot, is not {LATEST!r}, and has at most {_MAX_NAME} bytes"
        )
    return text


def temporary(folder: Path, tag: str) -> Path:
    """Return the folder in which a checkpoint is written."""
    return folder / f".{tag}.saving"


def _replaced(folder: Path, tag: str) -> Path:
    return folder / f".{tag}.replaced"


def make_temporary(folder: Path, tag: str) -> None:
    """Make an empty folder to write in; one that an interrupted save left is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = temporary(folder, tag)
    if path.exists():
        shutil.rmtree(path)
    path.mkdir()


def commit(folder: Path, tag: str) -> Path:
    """Put the written checkpoint in its place, and return that: from then on it is found."""
    path, old = folder / tag, _replaced(folder, tag)
    sync_folder(temporary(folder, tag))
    if path.exists():
        if old.exists():  # an earlier save was interrupted while it removed this
            shutil.rmtree(old)
        os.rename(path, old)
    os.rename(temporary(folder, tag), path)
    sync_folder(folder)
    if old.exists():
        shutil.rmtree(old)
    return path


def find(folder: Path, tag: str) -> Path | None:
    """Return the folder of a checkpoint, also where its replacement was interrupted; None if there is none."""
    return next((path for path in (folder / tag, _replaced(folder, tag)) if path.is_dir()), None)


def tags(folder: Path) -> list[str]:
    """Return the names of the checkpoints in a folder, in the order of the alphabet; empty if there is no folder."""
    if not folder.is_dir():
        return []
    found = (path.name for path in folder.iterdir() if (path / MANIFEST).is_file())
    return sorted(name for name in found if not name.startswith("."))


def open_file(path: Path) -> int:
    """Open a regular file for reading and return its descriptor. Raises CheckpointError for links and devices."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"{path} can't be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CheckpointError(f"{path} is not a regular file")
    return handle


def read_latest(folder: Path) -> str | None:
    """Return the tag of the last checkpoint; None without the file. Raises CheckpointError if it is no tag."""
    path = folder / LATEST
    if not os.path.lexists(path):
        return None
    try:
        with os.fdopen(open_file(path), "rb") as file:
            return check_tag(file.read(_MAX_NAME + 2).decode().strip())
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / LATEST} can't be read: {error}") from error


def write_latest(folder: Path, tag: str) -> None:
    """Let `latest` name a checkpoint that is in place."""
    partial = folder / f".{LATEST}.saving"
    try:
        write_synced(partial, tag.encode())
        os.replace(partial, folder / LATEST)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(folder)


def remove_old(folder: Path, keep: int, tag: str) -> None:
    """Remove all but the last `keep` checkpoints of a folder; never `tag` nor what `latest` names."""
    kept = {tag, read_latest(folder)}
    found = [
        ((path / MANIFEST).stat().st_mtime_ns, path)
        for path in folder.iterdir()
        if not path.name.startswith(".") and (path / MANIFEST).is_file()
    ]
    for _, path in sorted(found, reverse=True)[keep:]:
        if path.name in kept:
            continue
        gone = folder / f".{path.name}.removed"
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(gone)
        os.rename(path, gone)  # a checkpoint is there or not, and never in part
        shutil.rmtree(gone)
        _log.info("removed the checkpoint %s: keep_last=%d", path, keep)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_archive(path: Path, state: Mapping[str, Any]) -> None:
    """Write a file of torch.save. Raises OSError, also for a full disk."""
    with path.open("wb") as file:
        save_archive(state, file)


def save_archive(state: Any, file: Any) -> None:
    """Call torch.save. Raises the OSError of the file, which torch hides behind an error of its own."""
    try:
        torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    sync_file(folder)


def sync_file(path: Path) -> None:
    """Wait until a file that is closed is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
