"""Sequence parallelism: between the cut regions each rank holds its part of the tokens, [batch, tokens / n, features].

Norms, dropout and what is added up between regions then cost each rank its part alone. Where a region begins the
tokens of all ranks are gathered, where it ends the sum of the partial results is scattered over them: together as many
bytes as the one all-reduce in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from tpinit.runtime.errors import EngineError
from tpinit.runtime.parallel.rng import RngTracker

__all__ = [
    "map_input",
    "map_output",
    "shard_tokens",
    "gather_tokens",
    "gather_around",
    "refuse_hidden_states",
    "scatter_tokens",
]

_TOKENS = 1  # the dimension of [batch, tokens, features]


Move = Callable[[torch.Tensor, ProcessGroup], torch.Tensor]


class _Moved(torch.autograd.Function):
    """Moves tokens between the ranks in one way, and their gradients in another."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, group: ProcessGroup, there: Move, back: Move) -> torch.Tensor:
        ctx.group, ctx.back = group, back
        return there(tokens, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return ctx.back(grads[0], ctx.group), None, None, None


def _gather(local: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    sent = local.contiguous()
    parts = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, sent, group=group)
    return torch.cat(parts, dim=_TOKENS)


def _scatter(partial: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    parts = [part.contiguous() for part in partial.chunk(dist.get_world_size(group), dim=_TOKENS)]
    own = torch.empty_like(parts[0])
    dist.reduce_scatter(own, parts, group=group)
    return own


def _own(whole: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    length = whole.shape[_TOKENS] // dist.get_world_size(group)
    return whole.narrow(_TOKENS, dist.get_rank(group) * length, length).contiguous()


def gather_tokens(local: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """Return the tokens [batch, n * tokens, ...] of all ranks; the gradient is summed, and each gets its part."""
    return _Moved.apply(local, group, _gather, _scatter)  # type: ignore[no-untyped-call, no-any-return]  # torch leaves apply() untyped


def scatter_tokens(partial: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """Return this rank's part of the tokens of the sum of [batch, tokens, ...] over the group."""
    return _Moved.apply(partial, group, _scatter, _gather)  # type: ignore[no-untyped-call, no-any-return]  # torch leaves apply() untyped


def _whole_tokens(local: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    # What follows gives every rank the whole gradient, of which its own part is the right one.
    return _Moved.apply(local, group, _gather, _own)  # type: ignore[no-untyped-call, no-any-return]  # torch leaves apply() untyped


def _own_tokens(whole: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    ranks = dist.get_world_size(group)
    if whole.dim() < 3 or whole.shape[_TOKENS] % ranks:
        raise EngineError(
            f"sequence_parallel cuts the tokens of [batch, tokens, features] over {ranks} ranks, and this batch has "
            f"{list(whole.shape)}: give sequences whose length is a multiple of {ranks} (pad them, and mask the "
            "padding), or initialize without sequence_parallel"
        )
    return _Moved.apply(whole, group, _own, _gather)  # type: ignore[no-untyped-call, no-any-return]  # torch leaves apply() untyped


# --- on modules ------------------------------------------------------------------------------------------

Hook = Callable[[torch.Tensor], torch.Tensor]


def shard_tokens(first: nn.Module, last: nn.Module, group: ProcessGroup, streams: RngTracker | None) -> None:
    """Let each rank have its part of the tokens from what enters `first` to what leaves `last`.

    In between all random numbers come from the rank's own stream.
    """

    def enter(hidden: torch.Tensor) -> torch.Tensor:
        if streams is not None and first.training:
            streams.enter(hidden)
        return _own_tokens(hidden, group)

    def leave(hidden: torch.Tensor) -> torch.Tensor:
        if streams is not None and last.training:
            streams.leave(hidden)
        return _whole_tokens(hidden, group)

    map_input(first, enter)
    map_output(last, leave)


def gather_around(module: nn.Module, group: ProcessGroup) -> None:
    """Let a module see the tokens of all ranks, and compute the same on each of them."""
    map_input(module, lambda hidden: _whole_tokens(hidden, group))
    map_output(module, lambda hidden: _own_tokens(hidden, group))


def map_input(module: nn.Module, change: Hook) -> Any:
    """Change the hidden states that enter a module: its first argument, or `hidden_states`. Returns the hook."""

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        name = "hidden_states" if "hidden_states" in kwargs else "input"
        return args, {**kwargs, name: change(kwargs[name])}

    return module.register_forward_pre_hook(enter, with_kwargs=True)


def map_output(module: nn.Module, change: Hook) -> Any:
    """Change the hidden states that leave a module: its output, or the first of a tuple. Returns the hook."""

    def leave(_: nn.Module, __: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return module.register_forward_hook(leave)


def refuse_hidden_states(model: nn.Module) -> None:
    """Raise EngineError in a forward that is asked for the hidden states of all layers: a rank has a part of them."""

    def check(_: nn.Module, __: Any, kwargs: Mapping[str, Any]) -> None:
        asked = kwargs.get("output_hidden_states")
        if asked is None:
            asked = getattr(getattr(model, "config", None), "output_hidden_states", False)
        if asked:
            raise EngineError(
                "output_hidden_states: with sequence_parallel each rank holds a part of the tokens between layers; "
                "leave it out, or initialize without sequence_parallel"
            )

    model.register_forward_pre_hook(check, with_kwargs=True)
