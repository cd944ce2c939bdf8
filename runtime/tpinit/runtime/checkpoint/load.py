"""Loading: find a checkpoint, verify its files, compare it with what is to be filled, and only then fill that."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpinit.runtime.checkpoint import folders
from tpinit.runtime.checkpoint.manifest import SUMS, Manifest, check_file, read_manifest, read_sums
from tpinit.runtime.checkpoint.places import PlacedTensor
from tpinit.runtime.checkpoint.reader import TensorFiles
from tpinit.runtime.checkpoint.values import dtype_name
from tpinit.runtime.errors import CheckpointError

__all__ = ["Opened", "check_targets", "fill", "open_checkpoint", "open_folder", "verify"]

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint whose manifest was read. `stamp` is equal on two ranks only if they see the same files."""

    folder: Path
    manifest: Manifest
    sums: dict[str, str]
    stamp: str


def open_checkpoint(load_dir: Path, tag: str | None) -> Opened | None:
    """Return the checkpoint `tag`, or the one that `latest` names; None if there is no `latest`.

    Raises CheckpointError for a checkpoint that is not there, and for a manifest that can't be read.
    """
    wanted = folders.read_latest(load_dir) if tag is None else folders.check_tag(tag)
    if wanted is None:
        return None
    folder = folders.find(load_dir, wanted)
    if folder is None:
        if tag is not None:
            there = ", ".join(folders.tags(load_dir)[:_SHOWN]) or "no checkpoint"
            raise CheckpointError(f"{load_dir} has no checkpoint {wanted!r}: it has {there}")
        raise CheckpointError(f"{load_dir / folders.LATEST} names {wanted}, and there is no such folder: pass a tag")
    return open_folder(folder)


def open_folder(folder: Path) -> Opened:
    """Return the checkpoint in a folder. Raises CheckpointError for a manifest that can't be read."""
    if folder.is_symlink():
        raise CheckpointError(f"{folder} is a link: give the folder itself")
    if not (folder / folders.MANIFEST).exists():
        raise CheckpointError(
            f"{folder} has no {folders.MANIFEST}: it is no checkpoint of tpinit, or it is incomplete; "
            "engine.module.load_state_dict and from_pretrained take weights from elsewhere"
        )
    sums = read_sums(folder)
    check_file(folder, folders.MANIFEST, sums)
    manifest = read_manifest(folder)
    stamp = hashlib.sha256(repr(sorted(sums.items())).encode()).hexdigest()
    return Opened(folder, manifest, sums, stamp)


def verify(opened: Opened, share: int, shares: int) -> None:
    """Compare every `shares`-th file from number `share` on with its SHA-256. Raises CheckpointError."""
    files = sorted(opened.manifest.files.items())
    for name, size in files[share::shares]:
        check_file(opened.folder, name, opened.sums, size)
    missing = set(opened.sums) - {name for name, _ in files} - {folders.MANIFEST, ".metadata"}
    if missing:
        raise CheckpointError(f"{opened.folder / SUMS} has sums of files that {folders.MANIFEST} lacks: {missing}")


def check_targets(opened: Opened, targets: Sequence[PlacedTensor]) -> None:
    """Raise CheckpointError, with all differences, unless the checkpoint has each target's shape and dtype."""
    problems = []
    for target in targets:
        stored = opened.manifest.tensors.get(target.name)
        if stored is None:
            problems.append(f"{target.name} is not in it")
        elif stored.shape != tuple(target.shape):
            problems.append(f"{target.name} has shape {stored.shape} in it, and {tuple(target.shape)} here")
        elif stored.dtype != target.tensor.dtype:
            problems.append(f"{target.name} is {dtype_name(stored.dtype)} in it, and {target.tensor.dtype} here")
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CheckpointError(
            f"the checkpoint {opened.folder} is of another model or run: {'; '.join(problems[:_SHOWN])}{more}; "
            "nothing was loaded"
        )


def fill(opened: Opened, targets: Sequence[PlacedTensor], tp_rank: int) -> int:
    """Fill every target from the files, and return the number of bytes. Raises CheckpointError."""
    with TensorFiles(opened.folder, opened.manifest) as files:
        for target in targets:
            files.read(target, tp_rank)
    return sum(target.tensor.numel() * target.tensor.element_size() for target in targets)
