"""Blocks around cut layers: attributes and hooks that let a block work on its rank's part of the heads or features."""

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

    `attributes`: integer attributes by their path below the block (`num_heads`, `config.n_head`), with this rank's
    value. `arguments`: tensor arguments by name or position, with the dimension along which this rank takes its heads.
    `outputs`: modules inside the block whose output's last dimension counts heads. `num_heads` counts the heads of the
    whole block; `heads` is the (offset, length) of this rank's heads.
    """

    attributes: Mapping[str, int]
    arguments: Mapping[str, int]
    outputs: tuple[str, ...]
    num_heads: int
    heads: tuple[int, int]


def patch_block(block: nn.Module, local: LocalBlock, undo: list[Callable[[], None]] | None = None) -> list[Any]:
    """Set a block's attributes to this rank's values and hook what enters it whole. Parameters are not touched.

    If an attribute belongs to a config, its module gets a copy of the config. Returns the handles of the hooks; `undo`
    collects what restores the attributes.
    """
    for path, value in local.attributes.items():
        _set_attribute(block, path, value, undo if undo is not None else [])
    handles: list[Any] = []
    if local.arguments:
        hook = _take_heads(local.arguments, local.num_heads, local.heads)
        handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
    handles += [
        block.get_submodule(name).register_forward_hook(_take_last(local.num_heads, local.heads))
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


def _take_heads(arguments: Mapping[str, int], count: int, held: tuple[int, int]) -> Any:
    def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        changed = dict(kwargs)
        positional = list(args)
        for name, dim in arguments.items():
            if name.isdecimal():
                if int(name) < len(positional):
                    positional[int(name)] = _heads_of(positional[int(name)], dim, count, held)
            elif name in changed:
                changed[name] = _heads_of(changed[name], dim, count, held)
        return tuple(positional), changed

    return take


def _heads_of(value: Any, dim: int, count: int, held: tuple[int, int]) -> Any:
    """Take a rank's heads of a dimension that counts heads, or batch times heads; whatever else comes stays."""
    if not isinstance(value, torch.Tensor) or value.dim() <= dim or value.shape[dim] % count:
        return value
    split = value.reshape(*value.shape[:dim], value.shape[dim] // count, count, *value.shape[dim + 1 :])
    return split.narrow(dim + 1, *held).flatten(dim, dim + 1)


def _take_last(count: int, held: tuple[int, int]) -> Any:
    def take(_: nn.Module, __: Any, output: Any) -> Any:
        return output.narrow(-1, *held) if output.shape[-1] == count else output

    return take
