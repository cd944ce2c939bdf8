"""Tensors of state dicts that know which part of a whole tensor they are, for torch.distributed.checkpoint.

A state dict of a sharded model holds this rank's part of each parameter. As plain tensors, parts of one name would be
taken for copies: one of them would be saved, and every rank would load it. A `LocalShard` is a tensor with the same
values that offers torch's protocol for distributed checkpoints, so each rank writes and reads its own pieces, and a
checkpoint can be read with another TP size, or by the unsharded model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tpinit.runtime.checkpoint.places import local_boxes
from tpinit.runtime.errors import EngineError
from tpinit.runtime.internals.state_dict_private import compares_whole_size
from tpinit.runtime.internals.torch_private import plain_tensor_functions
from tpinit.runtime.planning.schema import ParameterPlan, Plan
from tpinit.runtime.slicing import Pieces

if TYPE_CHECKING:  # half a second to import, and needed only by a program that imported it
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
    from torch.distributed.checkpoint.planner import WriteItem

__all__ = ["PART_KEY", "LocalShard", "ShardLayout", "mark_model_state", "mark", "place_of", "plain"]

PART_KEY = "tensor_parallel"
"""The key in a state dict's metadata of the (TP size, TP rank) whose part the state dict holds."""


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """Where a shard belongs: the shape of the whole tensor, the sharded dimension, and its pieces along it."""

    shape: tuple[int, ...]
    dim: int
    pieces: Pieces

    def chunks(self) -> list[tuple[ChunkStorageMetadata, int]]:
        """Return each piece as offsets and sizes in the whole tensor, with its offset along `dim` in the shard."""
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        return [
            (ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes)), start)
            for box, start in local_boxes(self.shape, self.dim, self.pieces)
        ]

    @property
    def local_shape(self) -> tuple[int, ...]:
        """The shape of the shard."""
        length = sum(length for _, length in self.pieces)
        return tuple(length if dim == self.dim else size for dim, size in enumerate(self.shape))


_COPIES: frozenset[Callable[..., Any]] = frozenset(
    (
        *(torch.Tensor.detach, torch.Tensor.clone, torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda),
        *(torch.Tensor.contiguous, torch.Tensor.pin_memory, torch.Tensor.share_memory_, torch.detach, torch.clone),
    )
)
"""Functions whose result is the same part of the same whole tensor."""


class LocalShard(torch.Tensor):
    """A rank's part of a tensor, with its place in the whole one. Saved and pickled as a plain tensor."""

    tp_place: ShardLayout

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function on plain tensors. A copy of a shard is a shard; any other result is a plain tensor."""
        place = args[0].__dict__.get("tp_place") if args and isinstance(args[0], LocalShard) else None
        if func is torch.Tensor.size and place is not None and len(args) == 1 and compares_whole_size():
            return torch.Size(place.shape)
        with plain_tensor_functions():
            result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.new_empty and place is not None:
            return result.as_subclass(LocalShard)  # the copies that deepcopy and staging fill, attributes included
        return mark(result, place) if func in _COPIES and place is not None else result

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        """Return what this rank writes: its pieces."""
        from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        properties = TensorProperties.create_from_tensor(plain(self))
        size = torch.Size(self.tp_place.shape)
        return [
            WriteItem(
                MetadataIndex(fqn, chunk.offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, properties, size),
            )
            for chunk, _ in self.tp_place.chunks()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """Return what this rank reads: its pieces."""
        return [chunk for chunk, _ in self.tp_place.chunks()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        """Return a view of the piece at an offset of the whole tensor."""
        dim = self.tp_place.dim
        for chunk, start in self.tp_place.chunks():
            if chunk.offsets == index.offset:
                return plain(self).narrow(dim, start, chunk.sizes[dim])
        raise ValueError(f"{index.fqn}: this rank has no piece at offset {index.offset}")

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        """Return a copy of the shard."""
        return mark(copy.deepcopy(plain(self), memo), self.tp_place)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the values as a plain tensor: a file of torch.save can be read without tpinit."""
        return plain(self).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def mark(tensor: torch.Tensor, place: ShardLayout) -> torch.Tensor:
    """Return a tensor as a shard that shares its values."""
    shard = tensor.as_subclass(LocalShard)
    shard.tp_place = place
    return shard


def plain(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor that shares the values of a shard; any other tensor itself."""
    if not isinstance(value, LocalShard):
        return value
    with plain_tensor_functions():
        return value.as_subclass(torch.Tensor)


# To another process of this rank, which writes a checkpoint in the background, a shard goes as a shard.
ForkingPickler.register(LocalShard, lambda shard: (mark, (plain(shard), shard.tp_place)))


def place_of(record: ParameterPlan, plan: Plan) -> ShardLayout | None:
    """Return the place of this rank's part of a parameter; None if every rank holds all of it."""
    if record.dim is None:
        return None
    return ShardLayout(tuple(record.shape), record.dim, record.pieces_of(plan.tp_size, plan.tp_rank))


def mark_model_state(model: nn.Module, plan: Plan) -> None:
    """Let state dicts of a model, and of its submodules, hold a `LocalShard` for every sharded parameter.

    A state dict with `keep_vars=True` holds the parameters themselves.
    """
    places = {name: place_of(record, plan) for record in plan.parameters for name in record.names}
    for prefix, module in model.named_modules():
        own = {
            name: place
            for name, _ in module.named_parameters(recurse=False, remove_duplicate=False)
            if (place := places.get(f"{prefix}.{name}" if prefix else name)) is not None
        }
        if own:
            module.register_state_dict_post_hook(_Marker(own, (plan.tp_size, plan.tp_rank)))


class _Marker:
    """A hook after a module's state dict, for the module's own parameters. Torch sets an attribute on it."""

    def __init__(self, places: Mapping[str, ShardLayout], rank: tuple[int, int]) -> None:
        self.places = places
        self.rank = rank

    def __call__(self, _: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
        metadata[PART_KEY] = self.rank
        for name, place in self.places.items():
            value = state.get(prefix + name)
            if isinstance(value, torch.Tensor) and type(value) not in (torch.Tensor, nn.Parameter, LocalShard):
                raise EngineError(
                    f"state_dict: {prefix + name} is a {type(value).__name__} (fully_shard makes them), whose place in "
                    "the whole parameter is not known; a sharded model takes no other parameters after initialize"
                )
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                state[prefix + name] = mark(value, place)
