"""Attention probabilities in the output of a sharded model are gathered, so that they leave it whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.issuing import collective
from tpinit.runtime.parallel.collectives import gather_from_tp_region
from tpinit.runtime.parallel.forward_scope import ForwardScope

__all__ = ["gather_output_attentions", "numbers_of_heads"]

_KEYS = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
_HEADS = 1  # the dimension of [batch, heads, queries, keys]


def gather_output_attentions(scope: ForwardScope, group: ProcessGroup) -> None:
    """Gather the attention probabilities in a model's output: each rank computes those of its own heads.

    Costs collectives only in a forward that returns attentions. A forward that asks for them as a tuple
    (`return_dict=False`) raises EngineError, since a tuple does not say which of its items they are.
    """

    def enter(model: nn.Module, _: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        config = getattr(model, "config", None)
        wanted = _setting("output_attentions", kwargs, config, False)
        if wanted and _setting("return_dict", kwargs, config, True) is False:
            raise EngineError(
                "output_attentions with return_dict=False: a tuple does not say which items are attentions, and each "
                "rank has its own heads only; leave return_dict out"
            )

    def leave(model: nn.Module, output: Any) -> Any:
        if not isinstance(output, Mapping):
            return output
        for key in _KEYS:
            if isinstance(output.get(key), (tuple, list)):
                heads = numbers_of_heads(getattr(model, "config", None))
                gathered = tuple(_gathered(layer, heads, group) for layer in output[key])
                output[key] = gathered  # type: ignore[index]  # a ModelOutput, which is a mutable mapping
        return output

    scope.add(enter, leave)


def _setting(name: str, kwargs: Mapping[str, Any], config: Any, default: object) -> object:
    value = kwargs.get(name)
    return value if value is not None else getattr(config, name, default)


def numbers_of_heads(config: Any, with_shared: bool = False) -> set[int]:
    """Return every number of attention heads that a config and its inner configs name.

    `with_shared` returns those of key/value heads in their place, where a config names them.
    """
    if config is None:
        return set()
    counts = [(key, value) for key, value in vars(config).items() if type(value) is int]
    found = {value for key, value in counts if _counts_heads(key)}
    if with_shared:
        found = {value for key, value in counts if re.fullmatch(r"num_(key_value|kv)_heads", key)} or found
    for value in vars(config).values():
        if hasattr(value, "to_dict"):
            found |= numbers_of_heads(value, with_shared)
    return found


def _counts_heads(name: str) -> bool:
    return "head" in name and not any(word in name for word in ("kv", "key", "dim", "size", "group"))


def _gathered(local: Any, heads: set[int], group: ProcessGroup) -> Any:
    if not isinstance(local, torch.Tensor) or local.dim() != 4:
        return local
    counts = [torch.empty(1, dtype=torch.int64, device=local.device) for _ in range(dist.get_world_size(group))]
    collective(
        "all_gather", "numbers of heads", counts, torch.tensor([local.shape[_HEADS]], device=local.device), group=group
    )
    sizes = [int(count) for count in counts]
    is_replicated, is_sharded = set(sizes) <= heads, sum(sizes) in heads
    if is_replicated == is_sharded:
        raise EngineError(
            f"output_attentions: ranks have {sizes} heads, and the config names {sorted(heads)}: they may be parts of "
            "the heads or all of them; leave output_attentions out"
        )
    if is_replicated:
        return local
    slices = tuple(((sum(sizes[:rank]), size),) for rank, size in enumerate(sizes))
    last = local.transpose(_HEADS, -1).contiguous()
    return gather_from_tp_region(last, group, slices).transpose(_HEADS, -1)
