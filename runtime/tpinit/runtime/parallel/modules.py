"""Modules that are no single matrix: embeddings cut by vocabulary, blocks of experts, shared outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from tpinit.runtime.parallel.collectives import TPRegionInput, copy_to_tp_region, reduce_from_tp_region

__all__ = ["reduce_output_grad", "convert_embedding", "convert_experts", "zero_in_forward"]


def convert_embedding(module: nn.Embedding, begin: int, length: int, group: ProcessGroup) -> None:
    """Turn an embedding that holds the rows [begin, begin + length) into one that looks up all of them.

    Ids of other ranks' rows give zeros here, and the sum over the group, one all-reduce, gives the rest. What
    a derived class does with the result (a scale) is done before the sum, which it commutes with.
    """
    padding = module.padding_idx
    # Whoever holds the row of the padding keeps its gradient zero; the others have no such row.
    module.padding_idx = padding - begin if padding is not None and begin <= padding < begin + length else None
    module.num_embeddings = length
    held: list[torch.Tensor] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids = args[0] if args else kwargs["input"]
        here = (ids >= begin) & (ids < begin + length)
        held.append(here)
        local = torch.where(here, ids - begin, 0)
        return ((local, *args[1:]), kwargs) if args else (args, {**kwargs, "input": local})

    def leave(_: nn.Module, __: Any, ___: Any, output: torch.Tensor) -> torch.Tensor:
        here = held.pop().unsqueeze(-1)
        return reduce_from_tp_region(output.masked_fill(~here, 0), group)

    module.register_forward_pre_hook(enter, with_kwargs=True)
    module.register_forward_hook(leave, with_kwargs=True)


def convert_experts(module: nn.Module, entry: TPRegionInput, group: ProcessGroup) -> None:
    """Turn a block of experts, each cut inside, into one whose output is summed over the group.

    The hidden states, and the weights by which the router mixes the experts, each collect their gradients.
    """

    def collect(value: Any, fused_with: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point() and value.requires_grad
        return fused_with(value) if floating and torch.is_grad_enabled() else value

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        fused_column_groups = [entry, *([lambda value: copy_to_tp_region(value, group)] * max(0, len(args) - 1))]
        changed = tuple(
            collect(value, fused_with) for value, fused_with in zip(args, fused_column_groups, strict=False)
        )
        named = {
            name: collect(value, entry if name == "hidden_states" else lambda one: copy_to_tp_region(one, group))
            for name, value in kwargs.items()
        }
        return changed, named

    def leave(_: nn.Module, __: Any, ___: Any, output: Any) -> Any:
        return reduce_from_tp_region(output.clone(), group)

    module.register_forward_pre_hook(enter, with_kwargs=True)
    module.register_forward_hook(leave, with_kwargs=True)


def zero_in_forward(module: nn.Module, names: Sequence[str]) -> None:
    """Let a module see zeros in place of some of its parameters whenever it runs: another rank adds them to the sum.

    The parameters stay what and where they are; they get no gradient from this module.
    """

    def hide(block: nn.Module, _: Any) -> None:
        for name in names:
            block.__dict__[name] = torch.zeros_like(getattr(block, name))

    def show(block: nn.Module, *_: Any) -> None:
        for name in names:
            block.__dict__.pop(name, None)

    module.register_forward_pre_hook(hide)
    # Whatever ends the forward: activation checkpointing stops it as soon as it has what it came for.
    module.register_forward_hook(show, always_call=True)


def reduce_output_grad(module: nn.Module, group: ProcessGroup) -> None:
    """Let the gradient of a module's whole output be summed over the group."""
    module.register_forward_hook(lambda _, __, output: copy_to_tp_region(output, group))
