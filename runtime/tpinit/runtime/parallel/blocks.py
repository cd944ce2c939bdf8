"""Blocks around parallel layers: the attributes and hooks with which a block runs on its rank's heads or features."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

__all__ = ["LocalBlock", "patch_block"]


@dataclass(frozen=True, slots=True)
class LocalBlock:
    """How a block is patched on one rank.

    `attributes`: this rank's value of integer attributes, by their path below the block (`num_heads`, `config.n_head`).
    `arguments`: tensor arguments of the block's forward, by name or position, with the dimension of their heads.
    `outputs`: modules inside the block whose output has heads as its last dimension. `num_heads`: the number of heads
    of the unsharded block. `heads`: the (offset, length) of this rank's heads.
    """

    attributes: Mapping[str, int]
    arguments: Mapping[str, int]
    outputs: tuple[str, ...]
    num_heads: int
    heads: tuple[int, int]


def patch_block(block: nn.Module, local: LocalBlock, undo: list[Callable[[], None]] | None = None) -> list[Any]:
    """Set a block's attributes to this rank's values, and slice its replicated arguments and outputs by hooks.

    Parameters are not touched. If an attribute belongs to a config, its module gets a copy of the config. Returns the
    handles of the hooks; to `undo` are appended functions that restore the attributes.
    """
    for path, value in local.attributes.items():
        _set_attribute(block, path, value, undo if undo is not None else [])
    handles: list[Any] = []
    if local.arguments:
        hook = _slice_arguments(local.arguments, local.num_heads, local.heads)
        handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
    handles += [
        block.get_submodule(name).register_forward_hook(_slice_output(local.num_heads, local.heads))
        for name in local.outputs
    ]
    return handles


def _set_attribute(owner: Any, path: str, value: int, undo: list[Callable[[], None]]) -> None:
    first, _, rest = path.partition(".")
    if not rest:
        undo.append(partial(setattr, owner, first, getattr(owner, first)))
        setattr(owner, first, value)
        return
    inner = getattr(owner, first)
    if not isinstance(inner, nn.Module):
        undo.append(partial(setattr, owner, first, inner))
        inner = copy.copy(inner)
        setattr(owner, first, inner)
    _set_attribute(inner, rest, value, undo)


def _slice_arguments(arguments: Mapping[str, int], num_heads: int, heads: tuple[int, int]) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = dict(kwargs)
        positional = list(args)
        for name, dim in arguments.items():
            if name.isdecimal():
                if int(name) < len(positional):
                    positional[int(name)] = _slice_heads(positional[int(name)], dim, num_heads, heads)
            elif name in named:
                named[name] = _slice_heads(named[name], dim, num_heads, heads)
        return tuple(positional), named

    return hook


def _slice_heads(value: Any, dim: int, num_heads: int, heads: tuple[int, int]) -> Any:
    """Slice a rank's heads of a tensor whose dimension `dim` is heads, or batch times heads."""
    if not isinstance(value, torch.Tensor) or value.dim() <= dim or value.shape[dim] % num_heads:
        return value
    split = value.reshape(*value.shape[:dim], value.shape[dim] // num_heads, num_heads, *value.shape[dim + 1 :])
    return split.narrow(dim + 1, *heads).flatten(dim, dim + 1)


def _slice_output(num_heads: int, heads: tuple[int, int]) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        return output.narrow(-1, *heads) if output.shape[-1] == num_heads else output

    return hook
