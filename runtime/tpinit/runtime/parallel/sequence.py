"""Sequence parallelism: between the tensor-parallel regions each rank holds [batch, tokens / ranks, features].

Norms, dropout and residual additions between the regions then run on 1 / ranks of the tokens. A region begins with an
all-gather of the tokens and ends with a reduce-scatter of the partial results; together they move as many bytes as the
all-reduce that they replace.

==========================  =========================  =========================
function                    forward                    backward
==========================  =========================  =========================
`gather_tokens`             all-gather                 reduce-scatter
`reduce_scatter_tokens`     reduce-scatter             all-gather
`gather_replicated_tokens`  all-gather                 slice
`split_tokens`              slice                      all-gather
==========================  =========================  =========================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup
from tpinit.runtime.errors import EngineError
from tpinit.runtime.internals.transformers_private import is_model
from tpinit.runtime.parallel.collectives import BoundRegion, CollectiveKind, RankPieces, RegionFunction, Step
from tpinit.runtime.parallel.enclosed import check_enclosed
from tpinit.runtime.parallel.forward_scope import ForwardScope, running_scope
from tpinit.runtime.parallel.rng import RngTracker
from tpinit.runtime.parallel.tally import issue, place_of

__all__ = [
    "gather_around",
    "gather_replicated_tokens",
    "gather_tokens",
    "map_input",
    "map_output",
    "reduce_scatter_tokens",
    "shard_tokens",
    "split_tokens",
    "watch_tokens",
]

_TOKENS = 1  # the dimension of the tokens in [batch, tokens, features]
_HIDDEN_STATES = (
    "output_hidden_states: with sequence_parallel each rank holds a part of the tokens between layers; ask for them "
    "under torch.no_grad() without dropout, leave it out, or initialize without sequence_parallel"
)


# --- steps -----------------------------------------------------------------------------------------------


def _all_gather(local: torch.Tensor, group: ProcessGroup, _: RankPieces) -> torch.Tensor:
    if _leaves_whole(group):
        return local.detach()
    sent = local.contiguous()
    shards = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    issue("all_gather", shards, sent, group=group)
    return torch.cat(shards, dim=_TOKENS)


def _reduce_scatter(partial: torch.Tensor, group: ProcessGroup, _: RankPieces) -> torch.Tensor:
    if _leaves_whole(group):
        total = partial.clone(memory_format=torch.contiguous_format)
        issue("all_reduce", total, group=group)
        return total
    shards = [shard.contiguous() for shard in partial.chunk(dist.get_world_size(group), dim=_TOKENS)]
    local = torch.empty_like(shards[0])
    issue("reduce_scatter", local, shards, group=group)
    return local


def _slice(whole: torch.Tensor, group: ProcessGroup, _: RankPieces) -> torch.Tensor:
    if _leaves_whole(group):
        return whole.detach()
    length = whole.shape[_TOKENS] // dist.get_world_size(group)
    return whole.narrow(_TOKENS, dist.get_rank(group) * length, length).contiguous()


def _checked_slice(whole: torch.Tensor, group: ProcessGroup, pieces: RankPieces) -> torch.Tensor:
    ranks = dist.get_world_size(group)
    if not _leaves_whole(group) and (whole.dim() < 3 or whole.shape[_TOKENS] % ranks):
        raise EngineError(
            f"sequence_parallel cuts the tokens of [batch, tokens, features] over {ranks} ranks, and this batch has "
            f"{list(whole.shape)}: give sequences whose length is a multiple of {ranks} (pad them, and mask the "
            "padding), or initialize without sequence_parallel"
        )
    return _slice(whole, group, pieces)


# --- region functions ------------------------------------------------------------------------------------

gather_tokens = RegionFunction(
    Step(_all_gather, CollectiveKind.ALL_GATHER), Step(_reduce_scatter, CollectiveKind.REDUCE_SCATTER)
)
"""Returns [batch, tokens, ...] from [batch, tokens / ranks, ...], for a reader inside the tensor-parallel region:
each rank has a partial gradient, and the backward sums these."""

reduce_scatter_tokens = RegionFunction(
    Step(_reduce_scatter, CollectiveKind.REDUCE_SCATTER), Step(_all_gather, CollectiveKind.ALL_GATHER)
)
"""Returns this rank's tokens of the sum of [batch, tokens, ...] over the group."""

gather_replicated_tokens = RegionFunction(Step(_all_gather, CollectiveKind.ALL_GATHER), Step(_slice))
"""Returns [batch, tokens, ...] from [batch, tokens / ranks, ...], for a reader that computes the same on every rank:
each rank has the whole gradient, and the backward takes its slice."""

split_tokens = RegionFunction(Step(_checked_slice), Step(_all_gather, CollectiveKind.ALL_GATHER))
"""Returns this rank's tokens of [batch, tokens, features], which are equal on every rank.

Raises EngineError for a number of tokens that the ranks do not divide."""


# --- hooks on modules ------------------------------------------------------------------------------------

TensorMap = Callable[[torch.Tensor], torch.Tensor]


def shard_tokens(stack: str, layers: Sequence[nn.Module], group: ProcessGroup, rng: RngTracker | None) -> None:
    """Shard the tokens from the input of the first of a stack's layers to the output of the last.

    With `rng`, random numbers in between come from the rank's own RNG state while the module is in training mode.
    A forward that skips the first or the last layer raises EngineError. A forward without gradients over a number of
    tokens that the ranks do not divide leaves them whole: it has no activations to save, and `generate` runs on one
    token at a time.
    """
    split, gather = BoundRegion(split_tokens, group), BoundRegion(gather_replicated_tokens, group)
    first, last = layers[0], layers[-1]

    def enter(hidden: torch.Tensor) -> torch.Tensor:
        scope = running_scope()
        if scope is not None:  # not where activation checkpointing runs one layer again
            _open(stack, scope)
            _choose(hidden, group, scope, random=rng is not None and first.training)
        if rng is not None and first.training:
            rng.enter(hidden)
        return split(hidden)

    def leave(hidden: torch.Tensor) -> torch.Tensor:
        scope = running_scope()
        if scope is not None:
            _close(stack, scope)
        if rng is not None and last.training:
            rng.leave(hidden)
        return gather(hidden)

    map_input(first, enter)
    map_output(last, leave)


def _leaves_whole(group: ProcessGroup) -> bool:
    scope = running_scope()
    return scope is not None and id(group) in scope.tokens.whole_groups


def _choose(hidden: torch.Tensor, group: ProcessGroup, scope: ForwardScope, *, random: bool) -> None:
    """Decide whether this stack leaves the tokens whole. With `random` the ranks would draw other numbers for them."""
    divides = hidden.dim() >= 3 and hidden.shape[_TOKENS] % dist.get_world_size(group) == 0
    scope.tokens.whole_groups.discard(id(group))
    if scope.tokens.leave_whole and random:
        raise EngineError(_HIDDEN_STATES)
    if scope.tokens.leave_whole or not (divides or random or torch.is_grad_enabled()):
        scope.tokens.whole_groups.add(id(group))
        scope.tokens.leave_whole = True


def _open(stack: str, scope: ForwardScope) -> None:
    if stack in scope.tokens.open_stacks:
        raise _skipped(stack)
    scope.tokens.open_stacks.add(stack)


def _close(stack: str, scope: ForwardScope) -> None:
    if stack not in scope.tokens.open_stacks:
        raise _skipped(stack)
    scope.tokens.open_stacks.remove(stack)


def _refuse_open_stack(_: nn.Module, output: Any) -> Any:
    scope = running_scope()
    if output is not None and scope is not None:  # otherwise the forward raised
        for stack in scope.tokens.open_stacks:
            raise _skipped(stack)
    return output


def _skipped(stack: str) -> EngineError:
    return EngineError(
        f"sequence_parallel shards the tokens from the first layer of `{stack}` to its last, and this forward skipped "
        "one of these two: set the layer drop of the model to 0, or initialize without sequence_parallel"
    )


def gather_around(module: nn.Module, group: ProcessGroup) -> None:
    """Run a module on the tokens of all ranks, the same on each rank, between layers whose tokens are sharded."""
    map_input(module, BoundRegion(gather_replicated_tokens, group))
    map_output(module, BoundRegion(split_tokens, group))


def map_input(module: nn.Module, change: TensorMap) -> Any:
    """Replace the hidden states that enter a module, its first argument or `hidden_states`, by `change(hidden)`.

    Returns the handle of the hook.
    """

    def enter(own: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (_changed(own, change, args[0]), *args[1:]), kwargs
        name = "hidden_states" if "hidden_states" in kwargs else "input"
        return args, {**kwargs, name: _changed(own, change, kwargs[name])}

    return module.register_forward_pre_hook(enter, with_kwargs=True)


def _changed(module: nn.Module, change: TensorMap, hidden: torch.Tensor) -> torch.Tensor:
    check_enclosed(module)
    place = place_of(module, of_tokens=True)
    if place is None:
        return change(hidden)
    with place.runs():
        return change(hidden)


def map_output(module: nn.Module, change: TensorMap) -> Any:
    """Replace the hidden states that a module returns, its output or the first of a tuple, by `change(hidden)`.

    Returns the handle of the hook.
    """

    def leave(own: nn.Module, _: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (_changed(own, change, output[0]), *output[1:])
        return _changed(own, change, output)

    return module.register_forward_hook(leave)


def watch_tokens(model: nn.Module, scope: ForwardScope) -> None:
    """Refuse a forward that skips the end of a stack, and answer `output_hidden_states`.

    A forward with `output_hidden_states` leaves the tokens whole; one with gradients raises EngineError. This holds for
    the model and for each transformers model inside, which may be called by itself.
    """
    scope.add(leave=_refuse_open_stack)

    def check(module: nn.Module, _: Any, kwargs: Mapping[str, Any]) -> None:
        requested = kwargs.get("output_hidden_states")
        if requested is None:
            requested = getattr(getattr(module, "config", None), "output_hidden_states", False)
        if requested and torch.is_grad_enabled():
            raise EngineError(_HIDDEN_STATES)
        running = running_scope()
        if requested and running is not None:
            running.tokens.leave_whole = True

    for module in model.modules():
        if module is model or is_model(module):
            module.register_forward_pre_hook(check, with_kwargs=True)
