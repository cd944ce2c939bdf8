"""A checkpoint without its run: what it holds, and its weights as safetensors files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tpinit.runtime.checkpoint import folders
from tpinit.runtime.checkpoint.load import Opened, open_checkpoint, open_folder, verify
from tpinit.runtime.checkpoint.places import PlacedTensor
from tpinit.runtime.checkpoint.reader import TensorFiles
from tpinit.runtime.checkpoint.values import dtype_name
from tpinit.runtime.errors import CheckpointError
from tpinit.runtime.internals.host_memory import memory_of
from tpinit.runtime.loading.safetensors_dir import DTYPES, INDEX, SINGLE

__all__ = ["SHARD_BYTES", "consolidate", "inspect", "open_any"]

SHARD_BYTES = 5_000_000_000
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")
_CODES = {dtype: code for code, dtype in DTYPES.items()}


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
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output} exists and is not an empty folder: give a new one")
    stored = opened.manifest.tensors
    sources = {name.removeprefix("model."): name for name in sorted(stored) if name.startswith("model.")}
    if masters:
        sources.update({name: f"master.{name}" for name in sources if f"master.{name}" in stored})
    partial = output.with_name(f".{output.name}.saving")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        names = _write_shards(opened, sources, partial, shard_bytes)
        if model is not None:
            _copy_rest(model, partial)
        if output.exists():
            output.rmdir()
        partial.rename(output)
    except OSError as error:
        raise CheckpointError(f"{output} could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return names


def _copy_rest(model: Path, output: Path) -> None:
    for path in sorted(model.iterdir()):
        if path.is_file() and not path.name.endswith(_WEIGHTS):
            shutil.copyfile(path, output / path.name)


def _shards(opened: Opened, sources: dict[str, str], shard_bytes: int) -> Iterator[dict[str, str]]:
    """Yield the tensors of each file: at most `shard_bytes`, or one tensor that is larger."""
    shard: dict[str, str] = {}
    size = 0
    for name, source in sources.items():
        count = opened.manifest.tensors[source].nbytes
        if shard and size + count > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = source
        size += count
    if shard:
        yield shard


def _write_shards(opened: Opened, sources: dict[str, str], folder: Path, shard_bytes: int) -> list[str]:
    shards = list(_shards(opened, sources, shard_bytes))
    names = [SINGLE]
    if len(shards) != 1:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    with TensorFiles(opened.folder, opened.manifest) as files:
        for file_name, shard in zip(names, shards, strict=True):
            _write_file(folder / file_name, opened, shard, files)
    if len(shards) > 1:
        total = sum(opened.manifest.tensors[source].nbytes for source in sources.values())
        places = {name: file_name for file_name, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return names


def _write_file(path: Path, opened: Opened, shard: dict[str, str], files: TensorFiles) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, source in shard.items():
        stored = opened.manifest.tensors[source]
        begin, end = end, end + stored.nbytes
        code = _CODES.get(stored.dtype)
        if code is None:
            raise CheckpointError(f"{source} is {stored.dtype}, which safetensors can't hold")
        header[name] = {"dtype": code, "shape": stored.shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for source in shard.values():
            stored = opened.manifest.tensors[source]
            whole = torch.empty(stored.shape, dtype=stored.dtype)
            files.read(PlacedTensor(source, whole, stored.shape), 0)
            if whole.numel():
                file.write(memory_of(whole))
