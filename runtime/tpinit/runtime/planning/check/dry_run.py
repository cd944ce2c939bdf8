"""The rehearsal: is a region, on one rank's part of the features, the same computation as on all of them?

What lies between the column matrices and the row matrices of a region runs as the model has it, once whole
and once for each rank, on the same random outputs of all matrices. What reaches the row matrices on a rank
must be its part of what reached them in the whole run: then the sum over the ranks is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn
from tpinit.runtime.parallel.blocks import patch_block
from tpinit.runtime.planning.analysis.fake_forward import HELD_PIECES, run_fake_forward
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.analysis.trace import Trace
from tpinit.runtime.planning.partition.regions import BlockPatch, Region, ShardMismatch, block_plan
from tpinit.runtime.planning.partition.shard_maps import RegionSharding, per_head_shard_map
from tpinit.runtime.slicing import take_pieces

__all__ = ["check_shards", "compare", "patched_block", "replay"]

_TOLERANCE = 1e-4


class _Seen(Exception):
    """The row matrix of interest was reached: the rest of the forward is of no interest."""


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
    columns = {name: layout.columns[name].slices[rank] for region, layout, _ in cuts for name in region.columns}
    rows = {name: layout.row.slices[rank] for region, layout, _ in cuts for name in region.rows}
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
        return again(whole.expert_outputs, name)[1].clone()

    with ExitStack() as stack:
        for region, layout, adaptation in cuts:
            stack.enter_context(patched_block(model.get_submodule(region.block), layout, adaptation, rank))
        try:
            with suppress(_Seen):
                run_fake_forward(model, inputs, matrix, experts, context=whole.context)
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
    handles = patch_block(block, block_plan("", layout, adaptation).local(rank), undo)
    for name in adaptation.head_parameters:
        assert layout.heads is not None
        owner, last = _owner_of(block, name)
        whole = block.get_parameter(name).data
        spread = per_head_shard_map(whole.shape[0], layout.heads, len(layout.heads.slices))
        owner.__dict__[last] = take_pieces(whole, 0, spread.slices[rank])
        owner.__dict__.setdefault(HELD_PIECES, {})[last] = spread.slices[rank]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name in adaptation.head_parameters:
            owner, last = _owner_of(block, name)
            owner.__dict__.pop(last, None)
            owner.__dict__.pop(HELD_PIECES, None)
        for step in reversed(undo):
            step()


def _owner_of(block: nn.Module, path: str) -> tuple[nn.Module, str]:
    prefix, _, last = path.rpartition(".")
    return block.get_submodule(prefix), last
