"""The dry run: does every rank, with its slice of the features, compute its slice of the unsharded result?

The model runs unsharded once, then once for every rank, on the meta device too: every linear layer returns the same
random output in all runs, sliced where the layer is column-parallel. Everything between the column-parallel and the
row-parallel layers of a region runs as the model has it. The input of every row-parallel layer on a rank must be its
slice of the input in the unsharded run; then the sum over the ranks is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import nn
from tpinit.runtime.parallel.blocks import patch_block
from tpinit.runtime.planning.analysis.fake_forward import HELD_PIECES, run_fake_forward
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.build import PlanningTask
from tpinit.runtime.planning.partition.feature_parameters import block_placements
from tpinit.runtime.planning.partition.regions import CutRegion, ShardMismatch, block_plan
from tpinit.runtime.slicing import Pieces, take_pieces

__all__ = [
    "check_input",
    "check_shards",
    "column_slices",
    "errors_as_mismatch",
    "patched_block",
    "recorded_calls",
    "row_slices",
]

_TOLERANCE = 1e-4  # of the largest absolute value of the unsharded input
_ERROR_LENGTH = 160  # characters of a model's own error that a message repeats


class _AllRowsChecked(Exception):
    """Ends a forward: the last row-parallel layer of interest was reached."""


def recorded_calls() -> Callable[[Mapping[str, Sequence[torch.Tensor]], str], tuple[int, torch.Tensor]]:
    """Return a function that replays recorded tensors: from `(recorded, name)` to (index of this call, its tensor).

    The function returns the recorded tensor itself: clone it before the model may write to it. It raises ShardMismatch
    when `name` is called more often than it was recorded.
    """
    calls: dict[str, int] = {}

    def next_call(recorded: Mapping[str, Sequence[torch.Tensor]], name: str) -> tuple[int, torch.Tensor]:
        call = calls.get(name, 0)
        calls[name] = call + 1
        if call >= len(recorded.get(name, ())):
            raise ShardMismatch(f"`{name}` is called more often than in the unsharded run")
        return call, recorded[name][call]

    return next_call


def column_slices(regions: Sequence[CutRegion], rank: int) -> dict[str, Pieces]:
    """Return the slices of its output features that a rank holds of every column-parallel layer, by name."""
    return {name: sharding.columns[name].slices[rank] for region, sharding, _ in regions for name in region.columns}


def row_slices(regions: Sequence[CutRegion], rank: int) -> dict[str, Pieces]:
    """Return the slices of its input features that a rank holds of every row-parallel layer, by name."""
    return {name: sharding.row.slices[rank] for region, sharding, _ in regions for name in region.rows}


def check_shards(task: PlanningTask, regions: Sequence[CutRegion], *, stop_early: bool = False) -> None:
    """Run the model once for each rank with the regions sharded, and check the input of every row-parallel layer.

    `stop_early` ends each run at the last row-parallel layer of the regions. Raises ShardMismatch, which names the
    layer, the rank and the error.
    """
    for rank in range(task.tp_size):
        _check_rank(task, regions, rank, stop_early)


def _check_rank(task: PlanningTask, regions: Sequence[CutRegion], rank: int, stop_early: bool) -> None:
    trace = task.trace
    columns, rows = column_slices(regions, rank), row_slices(regions, rank)
    next_call = recorded_calls()
    missing_calls = sum(len(trace.inputs[name]) for name in rows)

    def run_linear(linear: LinearInfo, features: torch.Tensor) -> torch.Tensor:
        nonlocal missing_calls
        name = linear.name
        call, output = next_call(trace.outputs, name)
        if name in rows:
            check_input(name, features, take_pieces(trace.inputs[name][call], -1, rows[name]), rank)
            missing_calls -= 1
            if stop_early and not missing_calls:
                raise _AllRowsChecked
        return take_pieces(output, -1, columns[name]).clone() if name in columns else output.clone()

    def run_experts(name: str, _: torch.Tensor) -> torch.Tensor:
        return next_call(trace.expert_outputs, name)[1].clone()

    with ExitStack() as stack:
        for region, sharding, patch in regions:
            stack.enter_context(patched_block(task.model, (region, sharding, patch), rank))
        with errors_as_mismatch(), suppress(_AllRowsChecked):
            run_fake_forward(task.model, task.inputs, run_linear, run_experts, context=trace.context)
    if missing_calls > 0:
        raise ShardMismatch("its row-parallel layers are called less often than in the unsharded run")


@contextmanager
def errors_as_mismatch() -> Iterator[None]:
    """Raise ShardMismatch for whatever a model's forward raises on a slice of its features or tokens."""
    try:
        yield
    except (ShardMismatch, NotImplementedError):
        raise
    except Exception as error:
        text = (str(error).splitlines() or [""])[0][:_ERROR_LENGTH]
        raise ShardMismatch(f"its forward raises {type(error).__name__}: {text}") from error


def check_input(name: str, features: torch.Tensor, expected: torch.Tensor, rank: int) -> None:
    """Raise ShardMismatch unless the input of a module on a rank has the expected shape and values.

    Values are compared within 1e-4 of the largest absolute expected value. On the meta device only shapes are compared.
    """
    if features.shape != expected.shape:
        raise ShardMismatch(
            f"input of `{name}` on rank {rank} has shape {list(features.shape)}, expected {list(expected.shape)}"
        )
    if features.is_meta:
        return
    scale = float(expected.abs().max()) or 1.0
    error = float((features - expected).abs().max())
    if not error <= _TOLERANCE * scale:  # NaN is an error too
        raise ShardMismatch(
            f"input of `{name}` on rank {rank} differs from the unsharded run (max error {error / scale:.2g} x max abs)"
        )


# --- patching a block ------------------------------------------------------------------------------------


@contextmanager
def patched_block(model: nn.Module, cut_region: CutRegion, rank: int) -> Iterator[None]:
    """Patch a region's block as on one rank, with the rank's slices of its parameters, and undo that at the end."""
    region, sharding, patch = cut_region
    block = model.get_submodule(region.block)
    undo: list[Callable[[], None]] = []
    handles = patch_block(block, block_plan("", sharding, patch).local(rank), undo)
    placements = dict(block_placements(block, region, sharding, patch, len(sharding.row.slices)))
    for name, placement in placements.items():
        owner, last_name = _owner_of(block, name)
        held = placement.shard_map.slices[rank]
        # An entry in the module's __dict__ hides the parameter of the same name.
        owner.__dict__[last_name] = take_pieces(block.get_parameter(name).data, placement.dim, held)
        owner.__dict__.setdefault(HELD_PIECES, {})[last_name] = (placement.dim, held)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name in placements:
            owner, last_name = _owner_of(block, name)
            owner.__dict__.pop(last_name, None)
            owner.__dict__.pop(HELD_PIECES, None)
        for step in reversed(undo):
            step()


def _owner_of(block: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module that holds the parameter at `path`, and the parameter's name in it."""
    prefix, _, last_name = path.rpartition(".")
    return block.get_submodule(prefix), last_name
