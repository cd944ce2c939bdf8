"""`tpinit.json`: what a checkpoint holds and at which byte of which file, and `SHA256SUMS` of all its files.

torch.distributed.checkpoint writes its own index, `.metadata`, as a pickle; other programs read that one, and tpinit
never does. What is read here is checked before anything is done with it: a checkpoint may be damaged, or hostile.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from tpinit.runtime.checkpoint.folders import MANIFEST, open_file
from tpinit.runtime.checkpoint.places import Box
from tpinit.runtime.checkpoint.values import DTYPES, dtype_name
from tpinit.runtime.errors import CheckpointError
from tpinit.runtime.loading.safetensors_dir import read_json

__all__ = [
    "SUMS",
    "Chunk",
    "Manifest",
    "ChunkedTensor",
    "check_file",
    "read_manifest",
    "read_sums",
    "sha256_of",
    "sha256_of_file",
]

SUMS = "SHA256SUMS"
VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,99}")
_SUM = re.compile(r"([0-9a-f]{64})  ([^\n/]{1,100})")
_MAX_BYTES = 1 << 28  # of a manifest or a file of sums
_MAX_VALUES = 1 << 24  # of a manifest: each takes up to a hundred bytes of memory, and two in the file
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor in a file: its elements in row-major order, from byte `begin` on."""

    box: Box
    file: str
    begin: int


@dataclass(frozen=True, slots=True)
class ChunkedTensor:
    """A whole tensor: disjoint chunks that fill it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    @property
    def nbytes(self) -> int:
        """The size of the whole tensor in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `tpinit.json` says. `files` are the sizes in bytes of the files of tensors; `page` is the rest, as JSON."""

    tensors: Mapping[str, ChunkedTensor]
    files: Mapping[str, int]
    page: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        tensors = {
            name: {
                "dtype": dtype_name(stored.dtype),
                "shape": stored.shape,
                "chunks": [
                    {"offsets": chunk.box.offsets, "sizes": chunk.box.sizes, "file": chunk.file, "begin": chunk.begin}
                    for chunk in stored.chunks
                ],
            }
            for name, stored in sorted(self.tensors.items())
        }
        page = {"format": "tpinit checkpoint", "version": VERSION, **self.page, "files": self.files, "tensors": tensors}
        data = json.dumps(page, indent=1).encode()
        if len(data) > _MAX_BYTES or _values(data) > _MAX_VALUES:
            raise CheckpointError(f"{MANIFEST} would have {len(data)} bytes: give less in client_state")
        return data


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a checkpoint. Raises CheckpointError for what `to_bytes` can't have written."""
    raw = read_bytes(folder / MANIFEST)
    if _values(raw) > _MAX_VALUES:
        raise CheckpointError(f"{folder / MANIFEST} has more than {_MAX_VALUES} values: it is not read")
    try:
        page = read_json(raw)
        if page.pop("format") != "tpinit checkpoint":
            raise ValueError("it is not a tpinit checkpoint")
        if page.pop("version") != VERSION:
            raise ValueError(f"its format version is not {VERSION}, which this release reads")
        files = {_file_name(name): _count(size) for name, size in page.pop("files").items()}
        tensors = {name: _stored(name, entry, files) for name, entry in page.pop("tensors").items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        shown = "".join(letter if letter.isprintable() else "?" for letter in why[:300])  # one line of a terminal
        raise CheckpointError(f"{folder / MANIFEST} can't be read: {shown}") from error
    total = sum(stored.nbytes for stored in tensors.values())
    if total > sum(files.values()):
        raise CheckpointError(f"{folder / MANIFEST}: its tensors have {total} bytes, more than its files")
    return Manifest(tensors, files, page)


def _values(data: bytes) -> int:
    """Return at least the number of values in JSON data, without reading it."""
    return sum(map(data.count, (b",", b"[", b"{")))


def _stored(name: str, entry: Any, files: Mapping[str, int]) -> ChunkedTensor:
    dtype, shape = DTYPES[entry["dtype"]], tuple(map(_count, entry["shape"]))
    chunks = []
    for raw in entry["chunks"]:
        box = Box(tuple(map(_count, raw["offsets"])), tuple(map(_count, raw["sizes"])))
        chunk = Chunk(box, _file_name(raw["file"]), _count(raw["begin"]))
        if len(box.offsets) != len(shape) or len(box.sizes) != len(shape):
            raise ValueError(f"a chunk of {name} has other dimensions than the tensor")
        if any(offset + size > whole for offset, size, whole in zip(box.offsets, box.sizes, shape, strict=True)):
            raise ValueError(f"a chunk of {name} is outside of the tensor")
        if chunk.begin + box.count * dtype.itemsize > files[chunk.file]:
            raise ValueError(f"a chunk of {name} is outside of {chunk.file}")
        chunks.append(chunk)
    if not _fill(chunks, shape):
        raise ValueError(f"the chunks of {name} do not fill it once")
    return ChunkedTensor(dtype, shape, tuple(chunks))


def _fill(chunks: list[Chunk], shape: tuple[int, ...]) -> bool:
    """Return whether chunks that are cut along one dimension fill a tensor without gap or overlap."""
    cut = {dim for chunk in chunks for dim, size in enumerate(shape) if chunk.box.sizes[dim] != size}
    if not cut:
        return len(chunks) == 1
    if len(cut) > 1:
        return False
    (dim,) = cut
    end = 0
    for offset, size in sorted((chunk.box.offsets[dim], chunk.box.sizes[dim]) for chunk in chunks):
        if offset != end:
            return False
        end += size
    return end == shape[dim]


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{str(value)[:50]} is not a size")
    return value


def _file_name(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in (".", ".."):
        raise ValueError(f"{str(name)[:100]!r} is not a legal name of a file")
    return name


def read_bytes(path: Path) -> bytes:
    """Return the content of a small file. Raises CheckpointError."""
    with os.fdopen(open_file(path), "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise CheckpointError(f"{path} has more than {_MAX_BYTES} bytes")
    return data


def read_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint, as its `SHA256SUMS` says. Raises CheckpointError."""
    sums = {}
    for line in read_bytes(folder / SUMS).decode(errors="replace").splitlines():
        match = _SUM.fullmatch(line)
        if match is None or not _NAME.fullmatch(match[2]):
            raise CheckpointError(f"{folder / SUMS} can't be read: {line[:100]!r} is not a sum and a name")
        sums[match[2]] = match[1]
    return sums


def check_file(folder: Path, name: str, sums: Mapping[str, str], size: int | None = None) -> None:
    """Raise CheckpointError unless a file has its size in bytes and its SHA-256."""
    if name not in sums:
        raise CheckpointError(f"{folder / SUMS} has no sum of {name}: the checkpoint is incomplete")
    handle = open_file(folder / name)
    with os.fdopen(handle, "rb", buffering=0) as file:
        held = os.fstat(handle).st_size
        if size is not None and held != size:
            raise CheckpointError(f"{folder / name} has {held} bytes, and was saved with {size}: copy it again")
        found = sha256_of_file(file)
    if found != sums[name]:
        raise CheckpointError(
            f"{folder / name} is not the file that was saved: its SHA-256 is {found[:16]}..., and {SUMS} has "
            f"{sums[name][:16]}...; copy it again"
        )


def sha256_of_file(file: IO[bytes]) -> str:
    """Return the SHA-256 of an open file from its position on, as hex digits."""
    return sha256_of(iter(lambda: file.read(_BLOCK), b""))


def sha256_of(blocks: Iterable[bytes]) -> str:
    """Return the SHA-256 of all blocks, as hex digits."""
    hashed = hashlib.sha256()
    for block in blocks:
        hashed.update(block)
    return hashed.hexdigest()
