"""A model as a directory of safetensors files, written one tensor at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tpinit.runtime.checkpoint.model_tensors import ModelTensors, TensorSpec
from tpinit.runtime.errors import CheckpointError
from tpinit.runtime.internals.host_memory import memory_of
from tpinit.runtime.loading.safetensors_dir import DTYPES, INDEX, SINGLE

__all__ = ["SHARD_BYTES", "copy_rest", "write_safetensors"]

SHARD_BYTES = 5_000_000_000
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")
_CODES = {dtype: code for code, dtype in DTYPES.items()}


def copy_rest(model: Path, output: Path) -> None:
    """Copy all files of a directory but weights."""
    for path in sorted(model.iterdir()):
        if path.is_file() and not path.name.endswith(_WEIGHTS):
            shutil.copyfile(path, output / path.name)


def write_safetensors(
    source: ModelTensors, specs: Mapping[str, TensorSpec], folder: Path, shard_bytes: int = SHARD_BYTES
) -> list[str]:
    """Write all tensors in the dtypes of `specs`, and return the names of the files. Needs memory for one tensor."""
    shards = list(_shards(specs, shard_bytes))
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for file_name, shard in zip(names, shards, strict=True):
        _write_file(folder / file_name, source, shard)
    if len(shards) > 1:
        total = sum(spec.nbytes for spec in specs.values())
        places = {name: file_name for file_name, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return names


def _shards(specs: Mapping[str, TensorSpec], shard_bytes: int) -> Iterator[dict[str, TensorSpec]]:
    """Yield the tensors of each file: at most `shard_bytes`, or one tensor that is larger."""
    shard: dict[str, TensorSpec] = {}
    size = 0
    for name, spec in specs.items():
        if shard and size + spec.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = spec
        size += spec.nbytes
    yield shard


def _write_file(path: Path, source: ModelTensors, shard: Mapping[str, TensorSpec]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in shard.items():
        begin, end = end, end + spec.nbytes
        code = _CODES.get(spec.dtype)
        if code is None:
            raise CheckpointError(f"{name} is {spec.dtype}, which safetensors can't hold")
        header[name] = {"dtype": code, "shape": spec.shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name, spec in shard.items():
            whole: torch.Tensor | None = source.read(name).to(spec.dtype)
            assert whole is not None
            if whole.numel():
                file.write(memory_of(whole))
            whole = None  # before the next one is read
