"""A checkpoint without its run: what it holds, and its weights as safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tpinit.runtime.checkpoint import folders
from tpinit.runtime.checkpoint.convert import new_folder
from tpinit.runtime.checkpoint.load import Opened, open_checkpoint, open_folder, verify
from tpinit.runtime.checkpoint.model_tensors import CheckpointTensors
from tpinit.runtime.checkpoint.safetensors_writer import SHARD_BYTES, copy_rest, write_safetensors
from tpinit.runtime.checkpoint.values import dtype_name
from tpinit.runtime.errors import CheckpointError

__all__ = ["SHARD_BYTES", "consolidate", "inspect", "open_any"]


def open_any(folder: Path) -> Opened:
    """Return the checkpoint in a folder, or the one that its file `latest` names. Raises CheckpointError."""
    if (folder / folders.MANIFEST).exists():
        return open_folder(folder)
    opened = open_checkpoint(folder, None)
    if opened is None:
        raise CheckpointError(f"{folder} has neither {folders.MANIFEST} nor {folders.LATEST}: give a checkpoint")
    return opened


def inspect(folder: Path) -> dict[str, Any]:
    """Verify every file of a checkpoint and return what it holds, as JSON data. Raises CheckpointError."""
    opened = open_any(folder)
    verify(opened, 0, 1)
    page = opened.manifest.page
    kinds: dict[str, dict[str, Any]] = {}
    for name, stored in opened.manifest.tensors.items():
        entry = kinds.setdefault(name.partition(".")[0], {"tensors": 0, "bytes": 0, "dtypes": set()})
        entry["tensors"] += 1
        entry["bytes"] += stored.nbytes
        entry["dtypes"].add(dtype_name(stored.dtype))
    return {
        "folder": str(opened.folder),
        "weights_only": bool(page.get("weights_only")),
        "topology": page.get("topology"),
        "counters": page.get("counters"),
        "optimizer": (page.get("optimizer") or {}).get("class"),
        "scheduler": (page.get("scheduler") or {}).get("class"),
        "data": page.get("data"),
        "tensors": {kind: {**entry, "dtypes": sorted(entry["dtypes"])} for kind, entry in sorted(kinds.items())},
        "files": dict(opened.manifest.files),
    }


def consolidate(
    folder: Path, output: Path, model: Path | None = None, masters: bool = False, shard_bytes: int = SHARD_BYTES
) -> list[str]:
    """Write the whole model of a checkpoint as safetensors files, and return their names.

    `output` must be no folder or an empty one; it appears when it is complete. `model` is a directory from which all
    files but weights are copied; `masters`: fp32 master copies are written where there are some. Needs memory for one
    tensor. Raises CheckpointError.
    """
    opened = open_any(folder)
    verify(opened, 0, 1)
    source = CheckpointTensors(opened, masters)

    def write(partial: Path) -> list[str]:
        names = write_safetensors(source, source.specs, partial, shard_bytes)
        if model is not None:
            copy_rest(model, partial)
        return names

    try:
        return new_folder(output, write)
    finally:
        source.close()
