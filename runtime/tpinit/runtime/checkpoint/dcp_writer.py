"""Files that torch.distributed.checkpoint reads: one of each rank, with an archive of torch.save for each chunk, and an
index of their places.

torch's own writer exchanges plans and results twice, as pickles of its classes, and holds what it made for a file
(contiguous copies of slices, copies on the CPU) until the file is complete. Here a rank writes without asking, one
tensor is held at a time, and the first rank gathers once what the others wrote.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tpinit.runtime.checkpoint.folders import save_archive
from tpinit.runtime.checkpoint.hashed_file import HashedFile
from tpinit.runtime.checkpoint.manifest import Chunk, ChunkedTensor
from tpinit.runtime.checkpoint.places import Box, Write
from tpinit.runtime.errors import CheckpointError
from tpinit.runtime.internals.state_dict_private import place_in_file

__all__ = ["DCP_INDEX", "WrittenChunk", "WrittenFile", "check_files", "index_of", "write_chunks"]

DCP_INDEX = ".metadata"
"""The name of torch's index."""
_SECONDS = 5.0  # between two lines about the progress
_log = logging.getLogger("tpinit")


@dataclass(frozen=True, slots=True)
class WrittenChunk:
    """A box of the tensor `name`, of `shape` as a whole; its archive is the bytes from `begin` to `end` of the file.

    `first` is the first byte of the values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    box: Box
    begin: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """What one rank wrote: the file's name, its size in bytes, its SHA-256 and its chunks."""

    name: str
    size: int
    sum: str
    chunks: tuple[WrittenChunk, ...]


def write_chunks(
    folder: Path, rank: int, writes: Sequence[Write], read: Callable[[Write], torch.Tensor] | None = None
) -> WrittenFile | None:
    """Write this rank's boxes to a new file in `folder`, on the disk; return what it holds, None for no boxes.

    `read` returns the values of a box when they are written; without it they are those of the box. It is said every few
    seconds how far this rank is. Raises OSError.
    """
    if not writes:
        return None
    name = f"__{rank}_0.distcp"
    total = sum(write.values.nbytes for write in writes)
    written, shown, chunks = 0, time.monotonic(), []
    with HashedFile(folder / name) as file:
        for write in writes:
            values = (write.values if read is None else read(write)).detach()
            if time.monotonic() - shown > _SECONDS:
                shown = time.monotonic()
                _log.info("saving: %.1f of %.1f MB of this rank are written", written / 1e6, total / 1e6)
            begin, first = _archive(file, values)
            dtype, end = write.values.dtype, file.tell()
            chunks.append(WrittenChunk(write.name, write.shape, dtype, write.box, begin, first, end))
            written += values.nbytes
        file.sync()
        return WrittenFile(name, file.tell(), file.sum(), tuple(chunks))


def _archive(file: HashedFile, values: torch.Tensor) -> tuple[int, int]:
    """Write a tensor as torch.save does; return where this begins, and where the tensor's own bytes begin."""
    values = values.contiguous().cpu()
    if values.untyped_storage().nbytes() != values.nbytes:
        values = values.clone()  # torch.save writes the whole storage of a view
    begin = file.begin_archive()
    save_archive(values, file)
    return begin, file.first_byte(begin, values.nbytes)


def check_files(files: Sequence[WrittenFile]) -> dict[str, ChunkedTensor]:
    """Return the tensors that the files of all ranks hold. Raises CheckpointError unless each is there once."""
    tensors: dict[str, ChunkedTensor] = {}
    for file in files:
        for chunk in file.chunks:
            before = tensors.setdefault(chunk.name, ChunkedTensor(chunk.dtype, chunk.shape, ()))
            if (before.dtype, before.shape) != (chunk.dtype, chunk.shape):
                raise CheckpointError(f"the ranks hold {chunk.name} with other shapes or dtypes")
            chunks = (*before.chunks, Chunk(chunk.box, file.name, chunk.first))
            tensors[chunk.name] = ChunkedTensor(chunk.dtype, chunk.shape, chunks)
    for name, tensor in tensors.items():
        held, whole = sum(chunk.box.count for chunk in tensor.chunks), Box((), tensor.shape).count
        if held != whole:
            raise CheckpointError(f"the ranks write {held} of the {whole} elements of {name}")
    return tensors


def index_of(files: Sequence[WrittenFile]) -> bytes:
    """Return torch's index of the files, which it finds as `.metadata`: a pickle, which tpinit never reads."""
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    tensors: dict[str, TensorStorageMetadata] = {}
    places = {}
    for file in files:
        for chunk in file.chunks:
            offsets = torch.Size(chunk.box.offsets)
            entry = tensors.setdefault(
                chunk.name,
                TensorStorageMetadata(TensorProperties(dtype=chunk.dtype), torch.Size(chunk.shape), []),
            )
            entry.chunks.append(ChunkStorageMetadata(offsets, torch.Size(chunk.box.sizes)))
            places[MetadataIndex(chunk.name, offsets)] = place_in_file(file.name, chunk.begin, chunk.end - chunk.begin)
    paths = {name: tuple(name.split(".", 1)) for name in tensors}
    return pickle.dumps(Metadata(dict(tensors), planner_data=paths, storage_data=places))
