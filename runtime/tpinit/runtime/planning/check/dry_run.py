"""The rehearsal: is a region, on one rank's part of the features, the same computation as on all of them?

What lies between the column matrices and the row matrices of a region runs as the model has it, once whole
and once for each rank, on the same random outputs of all matrices. What reaches the row matrices on a rank
must be its part of what reached them in the whole run: then the sum over the ranks is exact.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from tpinit.runtime.planning.analysis.fake_forward import HELD_PIECES, run_fake_forward
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.analysis.trace import Trace
from tpinit.runtime.planning.partition.shard_maps import Pieces, RegionSharding, per_head_shard_map
from tpinit.runtime.planning.schema import BlockPlan

__all__ = [
    "BlockPatch",
    "ShardMismatch",
    "Region",
    "patch_block",
    "patched_block",
    "block_plan",
    "compare",
    "take_pieces",
    "check_shards",
    "replay",
]

_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Region:
    """What is cut together: the column matrices, the row matrices that read what they lead to, the block around.

    `shared` are matrices whose whole output enters the block too, beside being read by its columns `fed` (the
    rotary key of latent attention).
    """

    block: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    shared: tuple[str, ...]
    attends: bool
    fed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockPatch:
    """What a block must be told so that it works on a part.

    `numbers`: paths below the block (`num_heads`, `config.n_head`) and the number for each rank. `arguments`:
    tensor arguments, by name, of which a rank takes its heads, with the dimension. `outputs`: modules inside
    whose output's last dimension counts heads; `parameters`: parameters inside with one row for each head, or key/value
    head.
    """

    numbers: tuple[tuple[str, tuple[int, ...]], ...] = ()
    arguments: tuple[tuple[str, int], ...] = ()
    outputs: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


class ShardMismatch(Exception):
    """A rank would compute something else than its part; the text says what."""


class _Seen(Exception):
    """The row matrix of interest was reached: the rest of the forward is of no interest."""


def take_pieces(whole: torch.Tensor, dim: int, held: Pieces) -> torch.Tensor:
    """Return the pieces of a dimension that a rank holds, one after the other: a view where it is one piece."""
    found = [whole.narrow(dim, offset, length) for offset, length in held]
    return found[0] if len(found) == 1 else torch.cat(found, dim=dim)


def replay() -> Callable[[Mapping[str, Sequence[torch.Tensor]], str], tuple[int, torch.Tensor]]:
    """Return a function that gives, for each name, which call of it this is and what was recorded at that call.

    It raises Mismatch where there was no such call. What it gives is the record itself: clone what is handed on.
    """
    calls: dict[str, int] = {}

    def again(recorded: Mapping[str, Sequence[torch.Tensor]], name: str) -> tuple[int, torch.Tensor]:
        call = calls.get(name, 0)
        calls[name] = call + 1
        if call >= len(recorded.get(name, ())):
            raise ShardMismatch(f"{name} is reached another number of times than in the whole model")
        return call, recorded[name][call]

    return again


def check_shards(
    model: nn.Module,
    inputs: Mapping[str, Any],
    whole: Trace,
    cuts: Sequence[tuple[Region, RegionSharding, BlockPatch]],
    tp_size: int,
    only: bool = False,
) -> None:
    """Run the model once for each rank with the regions cut, and compare what reaches their row matrices.

    `only` ends each run at the last row matrix of the regions. Raises Mismatch.
    """
    for rank in range(tp_size):
        _rehearse_rank(model, inputs, whole, cuts, rank, only)


def _rehearse_rank(
    model: nn.Module,
    inputs: Mapping[str, Any],
    whole: Trace,
    cuts: Sequence[tuple[Region, RegionSharding, BlockPatch]],
    rank: int,
    only: bool,
) -> None:
    columns = {name: layout.columns[name].ranks[rank] for region, layout, _ in cuts for name in region.columns}
    rows = {name: layout.row.ranks[rank] for region, layout, _ in cuts for name in region.rows}
    again = replay()
    waited = sum(len(whole.inputs[name]) for name in rows)

    def matrix(one: LinearInfo, features: torch.Tensor) -> torch.Tensor:
        nonlocal waited
        call, output = again(whole.outputs, one.name)
        if one.name in rows:
            compare(one.name, features, take_pieces(whole.inputs[one.name][call], -1, rows[one.name]), rank)
            waited -= 1
            if only and not waited:
                raise _Seen
        return take_pieces(output, -1, columns[one.name]).clone() if one.name in columns else output.clone()

    def experts(name: str, _: torch.Tensor) -> torch.Tensor:
        return again(whole.experts, name)[1].clone()

    with ExitStack() as stack:
        for region, layout, adaptation in cuts:
            stack.enter_context(patched_block(model.get_submodule(region.block), layout, adaptation, rank))
        try:
            with suppress(_Seen):
                run_fake_forward(model, inputs, matrix, experts, stage=whole.stage)
        except (ShardMismatch, NotImplementedError):
            raise
        except Exception as error:  # whatever a model raises on a part of its features: this cut is none
            raise ShardMismatch(
                f"its forward raises {type(error).__name__}: {str(error).splitlines()[0][:160]}"
            ) from error
    if waited > 0:
        raise ShardMismatch("not all of its row matrices are reached")


def compare(name: str, features: torch.Tensor, expected: torch.Tensor, rank: int) -> None:
    """Raise Mismatch unless what reaches a module on a rank is what is expected."""
    if features.shape != expected.shape:
        raise ShardMismatch(
            f"{name} is reached by {list(features.shape)} on rank {rank}, not by {list(expected.shape)}"
        )
    if features.is_meta:
        return
    scale = float(expected.abs().max()) or 1.0
    off = float((features - expected).abs().max())
    if not off <= _TOLERANCE * scale:
        raise ShardMismatch(f"what reaches {name} on rank {rank} is off by {off / scale:.2g} of its largest number")


# --- adapting a block ------------------------------------------------------------------------------------


@contextmanager
def patched_block(block: nn.Module, layout: RegionSharding, adaptation: BlockPatch, rank: int) -> Iterator[None]:
    """Tell a block how much of it is here, for the time of a rehearsal."""
    undo: list[Callable[[], None]] = []
    handles = patch_block(block, block_plan("", layout, adaptation), rank, undo)
    for name in adaptation.parameters:
        assert layout.heads is not None
        owner, last = _owner_of(block, name)
        whole = block.get_parameter(name).data
        spread = per_head_shard_map(whole.shape[0], layout.heads, len(layout.heads.ranks))
        owner.__dict__[last] = take_pieces(whole, 0, spread.ranks[rank])
        owner.__dict__.setdefault(HELD_PIECES, {})[last] = spread.ranks[rank]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name in adaptation.parameters:
            owner, last = _owner_of(block, name)
            owner.__dict__.pop(last, None)
            owner.__dict__.pop(HELD_PIECES, None)
        for step in reversed(undo):
            step()


def _owner_of(block: nn.Module, path: str) -> tuple[nn.Module, str]:
    prefix, _, last = path.rpartition(".")
    return block.get_submodule(prefix), last


def block_plan(name: str, layout: RegionSharding, adaptation: BlockPatch) -> BlockPlan:
    """Return what a block must be told, as a record of the plan."""
    heads = layout.heads
    count, ranks = (heads.count, tuple(held for held, _ in heads.ranks)) if heads is not None else (0, ())
    return BlockPlan(name, count, ranks, adaptation.numbers, adaptation.arguments, adaptation.outputs)


def patch_block(
    block: nn.Module, plan: BlockPlan, rank: int, undo: list[Callable[[], None]] | None = None
) -> list[Any]:
    """Tell a block for good how much of it is here: its numbers, and hooks on what comes in whole.

    Where a number stands in a config, its module gets a config of its own. Parameters are not touched. Returns
    the handles of the hooks; `undo` collects what takes back the rest.
    """
    for path, ranks in plan.numbers:
        _set_number(block, path, ranks[rank], undo if undo is not None else [])
    handles: list[Any] = []
    if plan.arguments:
        taken = _take_heads(dict(plan.arguments), plan.heads, plan.head_ranks[rank])
        handles.append(block.register_forward_pre_hook(taken, with_kwargs=True))
    handles += [
        block.get_submodule(name).register_forward_hook(_last(plan.heads, plan.head_ranks[rank]))
        for name in plan.outputs
    ]
    return handles


def _set_number(owner: Any, path: str, value: int, undo: list[Callable[[], None]]) -> None:
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
    _set_number(inner, rest, value, undo)


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


def _last(count: int, held: tuple[int, int]) -> Any:
    def take(_: nn.Module, __: Any, output: Any) -> Any:
        return output.narrow(-1, *held) if output.shape[-1] == count else output

    return take
