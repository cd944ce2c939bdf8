"""Parallel modules other than single linears: vocab-parallel embeddings, blocks of experts, shared outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from tpinit.runtime.internals.torch_private import set_class
from tpinit.runtime.parallel.collectives import BoundRegion, RegionFunction, TPRegionInput
from tpinit.runtime.parallel.enclosed import check_enclosed
from tpinit.runtime.parallel.forward_scope import ForwardScope
from tpinit.runtime.parallel.guarded import guard_parameters, guarded_attributes, own_forward
from tpinit.runtime.parallel.layer_kinds import LayerKind, layer_regions
from tpinit.runtime.parallel.tally import counted, current_place, place_of
from tpinit.runtime.parallel.vocabulary import check_ids

__all__ = ["convert_embedding", "convert_experts", "guard_experts", "reduce_output_grad", "zero_in_forward"]


def convert_embedding(module: nn.Embedding, begin: int, length: int, group: ProcessGroup) -> None:
    """Make an embedding that holds the rows [begin, begin + length) a vocab-parallel embedding.

    A rank returns zeros for the ids of other ranks' rows; the sum over the group, one all-reduce, is the whole output.
    What a derived class computes from the output (a scale) runs before the sum, and must commute with it. An id outside
    of the vocabulary raises EngineError on every rank.
    """
    module.__dict__.update(
        tp_vocabulary=module.num_embeddings, tp_first=begin, tp_region_output=_output_region(LayerKind.EMBEDDING, group)
    )
    padding = module.padding_idx
    # The rank that holds the padding row keeps its gradient zero; the others have no such row.
    module.padding_idx = padding - begin if padding is not None and begin <= padding < begin + length else None
    module.num_embeddings = length
    original = type(module)
    if original not in _DERIVED:
        attributes = {"__module__": __name__, **guarded_attributes(("weight",))}
        name = f"VocabParallelEmbeddingOf{original.__name__}"
        _DERIVED[original] = type(name, (_VocabParallelEmbedding, original), attributes)
    set_class(module, _DERIVED[original])


class _VocabParallelEmbedding:
    """An embedding that holds some rows of the table. Its input and output are whole, so hooks see whole tensors."""

    num_embeddings: int
    tp_vocabulary: int
    tp_first: int
    tp_region_output: BoundRegion

    @counted
    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Map ids [...] to their rows [..., features]."""
        check_enclosed(self)
        check_ids(input, self.tp_vocabulary)
        is_local = (input >= self.tp_first) & (input < self.tp_first + self.num_embeddings)
        local_ids = torch.where(is_local, input - self.tp_first, 0)
        with own_forward(self):
            rows: torch.Tensor = super().forward(local_ids, *args, **kwargs)  # type: ignore[misc]  # the embedding's class
        return self.tp_region_output(rows.masked_fill(~is_local.unsqueeze(-1), 0))


_DERIVED: dict[type, type] = {}


def convert_experts(module: nn.Module, region_input: TPRegionInput, group: ProcessGroup) -> None:
    """Make a block of experts, each of them already sharded, one whose output is summed over the group.

    The hidden states go through `region_input`, which other layers share. Every other floating-point argument (the
    router's weights) is copied to the TP region on its own, since each rank has a part of its gradient too.
    """
    regions = layer_regions(LayerKind.EXPERTS)
    assert regions.input is region_input.region
    copy_argument = BoundRegion(region_input.region, group)
    reduce = _output_region(LayerKind.EXPERTS, group)

    def copied(value: Any, region: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        if value.requires_grad and torch.is_grad_enabled():
            return region(value)
        place = current_place()
        if place is not None:
            place.apply(region.region)
        return value

    def enter(own: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        check_enclosed(own)
        with _running(own):
            return change(args, kwargs)

    def change(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        positional = tuple(copied(value, copy_argument if place else region_input) for place, value in enumerate(args))
        named = {
            name: copied(value, region_input if name == "hidden_states" else copy_argument)
            for name, value in kwargs.items()
        }
        return positional, named

    def leave(own: nn.Module, _: Any, __: Any, output: Any) -> Any:
        with _running(own):
            return reduce(output.clone())  # a copy, because the sum is computed in place

    _count_forwards(module)
    module.register_forward_pre_hook(enter, with_kwargs=True)
    # First, so that the user's hooks see the sum.
    module.register_forward_hook(leave, with_kwargs=True, prepend=True)


def guard_experts(module: nn.Module, name: str, sharded: Sequence[str], scope: ForwardScope | None) -> None:
    """Guard the sharded parameters of a block of experts, while a forward of `scope` runs outside of the block's own.

    `name` is the block's, and `sharded` are the paths of the parameters below it.
    """
    holders: dict[str, list[str]] = {}
    for path in sharded:
        owner, _, parameter = path.rpartition(".")
        holders.setdefault(owner, []).append(parameter)
    guarded = {owner: module.get_submodule(owner) for owner in holders}
    for owner, holder in guarded.items():
        guard_parameters(holder, f"{name}.{owner}" if owner else name, scope)
        set_class(holder, _guarded_class(type(holder), tuple(holders[owner])))
    module.__dict__["tp_guarded"] = tuple(guarded.values())
    set_class(module, _guarded_class(type(module), ()))


class _OwnReads:
    """A block of experts whose own forward reads its parameters."""

    tp_guarded: tuple[nn.Module, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward of the original class."""
        with ExitStack() as stack:
            for holder in self.tp_guarded:
                stack.enter_context(own_forward(holder))
            return super().forward(*args, **kwargs)  # type: ignore[misc]  # the class of the experts


class _PartOfExperts:
    """A module inside a block of experts that holds a part of a parameter."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward of the original class. Raises EngineError if nothing runs whose output is whole."""
        check_enclosed(self)
        return super().forward(*args, **kwargs)  # type: ignore[misc]  # the class of the module inside the block


_GUARDED: dict[tuple[type, tuple[str, ...]], type] = {}


def _guarded_class(original: type, names: tuple[str, ...]) -> type:
    """Return a class that guards the parameters `names`; without names, one whose own forward may read them."""
    if (original, names) not in _GUARDED:
        bases = (_PartOfExperts, original) if names else (_OwnReads, original)
        attributes = {"__module__": __name__, "__qualname__": original.__qualname__, **guarded_attributes(names)}
        _GUARDED[original, names] = type(original.__name__, bases, attributes)
    return _GUARDED[original, names]


def zero_in_forward(module: nn.Module, names: Sequence[str]) -> None:
    """Replace some parameters of a module by zeros during its forward, because another rank adds them to the sum.

    The Parameter objects stay as they are; this module gives them no gradient.
    """

    def hide(block: nn.Module, _: Any) -> None:
        for name in names:
            block.__dict__[name] = torch.zeros_like(getattr(block, name))

    def restore(block: nn.Module, *_: Any) -> None:
        for name in names:
            block.__dict__.pop(name, None)

    module.register_forward_pre_hook(hide)
    # Also after an exception: activation checkpointing ends a recomputed forward early with one.
    module.register_forward_hook(restore, always_call=True)


def reduce_output_grad(module: nn.Module, group: ProcessGroup) -> None:
    """Sum the gradient of a module's replicated output over the group."""
    copy_output = _output_region(LayerKind.SHARED_OUTPUT, group)

    def leave(own: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        if output.requires_grad:
            check_enclosed(own)
        with _running(own):
            return copy_output(output)

    _count_forwards(module)
    module.register_forward_hook(leave)


def _running(module: nn.Module) -> Any:
    """Return a context in which region functions count at the place of a module, if it has one."""
    place = place_of(module)
    return contextlib.nullcontext() if place is None else place.runs()


def _count_forwards(module: nn.Module) -> None:
    """Let a first step count the forwards of a module, also those that pass its hooks by."""
    original = type(module)
    if original not in _COUNTED:
        _COUNTED[original] = type(original.__name__, (_Counted, original), {"__module__": original.__module__})
    set_class(module, _COUNTED[original])


class _Counted:
    """A module whose region functions are in hooks."""

    @counted
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the original class returns."""
        return super().forward(*args, **kwargs)  # type: ignore[misc]  # the original class


_COUNTED: dict[type, type] = {}


def _output_region(kind: LayerKind, group: ProcessGroup) -> BoundRegion:
    region: RegionFunction | None = layer_regions(kind).output
    assert region is not None
    return BoundRegion(region, group)
