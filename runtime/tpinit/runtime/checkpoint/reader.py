"""Reading the parts of tensors that a rank needs from the files of a checkpoint, whatever ranks wrote them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from tpinit.runtime.checkpoint.folders import open_file
from tpinit.runtime.checkpoint.manifest import Chunk, ChunkedTensor, Manifest
from tpinit.runtime.checkpoint.places import Box, PlacedTensor, local_boxes, overlap
from tpinit.runtime.errors import CheckpointError
from tpinit.runtime.internals.host_memory import memory_of

__all__ = ["TensorFiles"]


class TensorFiles:
    """The open files of a checkpoint. Needs memory for one chunk beside the tensors that it fills."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._handles: dict[str, int] = {}

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def read(self, target: PlacedTensor, tp_rank: int) -> None:
        """Fill this rank's part of a tensor, in place. The manifest must have the tensor, with its shape and dtype."""
        stored = self.manifest.tensors[target.name]
        pieces = target.pieces[tp_rank] if target.dim is not None else ()
        for box, start in local_boxes(target.shape, target.dim, pieces):
            for chunk in stored.chunks:
                common = overlap(box, chunk.box)
                if common is not None:
                    place = [common.offsets[dim] - box.offsets[dim] for dim in range(len(target.shape))]
                    if target.dim is not None:
                        place[target.dim] += start
                    self._copy(_view(target.tensor, place, common.sizes), stored, chunk, common)

    def _copy(self, out: torch.Tensor, stored: ChunkedTensor, chunk: Chunk, wanted: Box) -> None:
        """Read the rows of a chunk that hold `wanted`, and copy that to `out`."""
        sizes = list(chunk.box.sizes)
        inside = [begin - first for begin, first in zip(wanted.offsets, chunk.box.offsets, strict=True)]
        begin = chunk.begin
        if sizes:
            begin += inside[0] * math.prod(sizes[1:]) * stored.dtype.itemsize
            sizes[0], inside[0] = wanted.sizes[0], 0
        rows = torch.empty(sizes, dtype=stored.dtype)
        self._fill(rows, chunk.file, begin)
        out.copy_(_view(rows, inside, wanted.sizes))

    def _fill(self, out: torch.Tensor, name: str, begin: int) -> None:
        size = out.numel() * out.element_size()
        memory = memory_of(out)
        if name not in self._handles:
            self._handles[name] = open_file(self.folder / name)
        done = 0
        while done < size:
            try:
                count = os.preadv(self._handles[name], [memory[done:]], begin + done)
            except OSError as error:
                raise CheckpointError(
                    f"{self.folder / name} can't be read at byte {begin + done}: {error.strerror}"
                ) from error
            if not count:
                raise CheckpointError(f"{self.folder / name} became shorter while it was read")
            done += count


def _view(tensor: torch.Tensor, begins: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    for dim, (begin, size) in enumerate(zip(begins, sizes, strict=True)):
        tensor = tensor.narrow(dim, begin, size)
    return tensor
