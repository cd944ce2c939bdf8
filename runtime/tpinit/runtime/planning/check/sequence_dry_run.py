"""The dry run of sequence parallelism: does every rank, with its part of the tokens, compute its part of the result?

The model runs unsharded once, while the inputs and outputs of the modules of interest are recorded and every use of a
gathered tensor is watched. Then it runs once for each rank, with that rank's part of the tokens. Where the plan gathers
tokens, the rank's input must be its part of the unsharded input, and the unsharded input takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from tpinit.runtime.internals.torch_private import PlainDispatchMode, storage_key, tree_leaves
from tpinit.runtime.parallel.sequence import map_input, map_output
from tpinit.runtime.planning.analysis.fake_forward import run_fake_forward
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.build import PlanningTask
from tpinit.runtime.planning.check.dry_run import (
    check_input,
    column_slices,
    errors_as_mismatch,
    patched_block,
    recorded_calls,
    row_slices,
)
from tpinit.runtime.planning.check.search import reached_regions
from tpinit.runtime.planning.partition.regions import CutRegion, ShardMismatch
from tpinit.runtime.planning.schema import SequencePlan
from tpinit.runtime.shards import shard
from tpinit.runtime.slicing import take_pieces

__all__ = ["HIDDEN_DIMS", "TokenReaders", "check_sequence", "is_inside"]

_TOKEN_DIM = 1  # of hidden states [batch, tokens, features]
HIDDEN_DIMS = 3

_Change = Callable[[torch.Tensor], torch.Tensor]


def is_inside(name: str, modules: Sequence[str]) -> bool:
    """Return whether a module or parameter is one of `modules` or inside one of them, by name."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


@dataclass(frozen=True, slots=True)
class TokenReaders:
    """Which linear layers inside the modules with gathered input read what.

    `columns`: the column-parallel layers that read the gathered tokens, directly or behind an adapter's first layer.
    `first_layers`: replicated layers that read the gathered tokens, and whose output only `columns` read (LoRA's A
    beside a column-parallel layer): a rank has a part of their gradients. `behind_rows`: replicated layers that read
    the output of row-parallel layers, a part of the tokens (LoRA's B beside a row-parallel layer).
    """

    columns: frozenset[str]
    first_layers: frozenset[str]
    behind_rows: frozenset[str]


def check_sequence(
    task: PlanningTask, sequence: SequencePlan, token_regions: Sequence[CutRegion], regions: Sequence[CutRegion]
) -> TokenReaders:
    """Check in a dry run that the tokens of a stack can be sharded as `sequence` says.

    `token_regions` are the regions of the stack that read a part of the tokens, `regions` those of the whole model.
    Returns which layers read the gathered tokens. Raises ShardMismatch, with the module, the rank and the error, if a
    rank computes something else.
    """
    layers = [f"{sequence.stack}.{name}" for name, _ in task.model.get_submodule(sequence.stack).named_children()]
    columns = {name for region, _, _ in token_regions for name in region.columns if name not in region.fed_by_shared}
    rows = {name for region, _, _ in token_regions for name in region.rows}
    unsharded = _run_unsharded(task, sequence, layers, {*columns, *rows})
    readers = _token_readers(task, sequence, unsharded, columns, rows)
    run = _RankRun(task, sequence, layers, unsharded, readers, token_regions, regions)
    for rank in range(task.tp_size):
        _check_rank(run, rank)
    return readers


def _token_readers(
    task: PlanningTask, sequence: SequencePlan, unsharded: _Unsharded, columns: set[str], rows: set[str]
) -> TokenReaders:
    direct: set[str] = set()
    first_layers: set[str] = set()
    for name in sequence.gather_inputs:
        readers = unsharded.readers.get(name, set())
        if not readers:
            raise ShardMismatch(f"no linear layer reads the input of `{name}` directly")
        adapters = {reader for reader in readers - columns if columns >= unsharded.readers.get(reader, set()) != set()}
        if readers - columns - adapters:
            others = ", ".join(f"`{reader}`" for reader in sorted(readers - columns - adapters))
            raise ShardMismatch(f"the input of `{name}` is read by {others} too, which is not column-parallel with it")
        direct |= readers & columns
        first_layers |= adapters
    behind = {reader for adapter in first_layers for reader in unsharded.readers[adapter]}
    behind_rows = {
        name
        for name, sources in task.trace.sources.items()
        if is_inside(name, sequence.gather_inputs) and sources and sources <= rows and name not in first_layers | rows
    }
    return TokenReaders(frozenset(direct | behind), frozenset(first_layers), frozenset(behind_rows - columns))


# --- the unsharded run -----------------------------------------------------------------------------------


class _TensorUses(PlainDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves the base untyped
    """Records, by name, which watched tensors enter an operation that does not return a view of them."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, tuple[str, torch.Tensor]] = {}  # by storage; holds the tensor, so none is freed
        self.used: set[str] = set()
        self.paused = False

    def watch(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        self.watched[storage_key(tensor)] = name, tensor
        return tensor

    def name_of(self, tensor: torch.Tensor) -> str | None:
        return self.watched.get(storage_key(tensor), (None, None))[0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.paused:
            inputs = {self.name_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
            outputs = {self.name_of(leaf) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
            self.used |= {name for name in inputs - outputs if name is not None}
        return result


@dataclass(slots=True)
class _Unsharded:
    """What the unsharded run recorded: inputs and outputs of modules, and the linear layers that read each input."""

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=dict)


def _record_once(records: dict[str, torch.Tensor], name: str, hidden: torch.Tensor) -> torch.Tensor:
    """Record hidden states [batch, tokens, features] and return them.

    Raises ShardMismatch for a second call of the module `name`, and for a tensor of other than three dimensions.
    """
    if name in records:
        raise ShardMismatch(f"`{name}` runs more than once in a forward")
    if not isinstance(hidden, torch.Tensor) or hidden.dim() != HIDDEN_DIMS:
        raise ShardMismatch(f"`{name}` has no hidden states [batch, tokens, features] as input or output")
    records[name] = hidden.detach().clone()
    return hidden


def _run_unsharded(
    task: PlanningTask, sequence: SequencePlan, layers: Sequence[str], sharded: Collection[str]
) -> _Unsharded:
    unsharded, uses, next_call = _Unsharded(), _TensorUses(), recorded_calls()

    def run_linear(linear: LinearInfo, features: torch.Tensor) -> torch.Tensor:
        name = uses.name_of(features)
        if name is not None:
            unsharded.readers.setdefault(name, set()).add(linear.name)
        uses.paused = True
        try:
            output = next_call(task.trace.outputs, linear.name)[1].clone()
        finally:
            uses.paused = False
        reads_gathered = name in sequence.gather_inputs
        return uses.watch(linear.name, output) if reads_gathered and linear.name not in sharded else output

    def watch_input(name: str, hidden: torch.Tensor) -> torch.Tensor:
        return uses.watch(name, _record_once(unsharded.inputs, name, hidden).clone())

    inputs = {name: partial(_record_once, unsharded.inputs, name) for name in (layers[0], *sequence.replicated_modules)}
    inputs |= {name: partial(watch_input, name) for name in sequence.gather_inputs}
    outputs = {
        name: partial(_record_once, unsharded.outputs, name) for name in (layers[-1], *sequence.replicated_modules)
    }
    with _mapped(task.model, inputs, outputs), uses:
        _run_forward(task, run_linear, lambda name, _: next_call(task.trace.expert_outputs, name)[1].clone())
    if uses.used:
        names = ", ".join(f"`{name}`" for name in sorted(uses.used))
        raise ShardMismatch(f"the tokens that are gathered for {names} are used by more than column-parallel layers")
    if layers[-1] not in unsharded.outputs:
        raise ShardMismatch("its layers do not run one after the other")
    return unsharded


# --- the run of one rank ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _RankRun:
    """What the runs of all ranks share."""

    task: PlanningTask
    sequence: SequencePlan
    layers: Sequence[str]
    unsharded: _Unsharded
    readers: TokenReaders
    token_regions: Sequence[CutRegion]
    regions: Sequence[CutRegion]

    def takes_token_part(self, name: str, rows: Mapping[str, object]) -> bool:
        """Return whether the input of a linear layer is a part of the tokens on every rank."""
        if name in self.readers.behind_rows:
            return True
        if not name.startswith(f"{self.sequence.stack}.") or name in self.readers.columns or name in rows:
            return False
        return not is_inside(name, (*self.sequence.gather_inputs, *self.sequence.replicated_modules))


def _check_rank(run: _RankRun, rank: int) -> None:
    task, sequence, trace = run.task, run.sequence, run.task.trace
    next_call = recorded_calls()
    columns, rows = column_slices(run.regions, rank), row_slices(run.regions, rank)
    scattered = {name for region, _, _ in run.token_regions for name in region.rows}

    def own_tokens(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.narrow(_TOKEN_DIM, *shard(tensor.shape[_TOKEN_DIM], task.tp_size, rank))

    def check(name: str, hidden: torch.Tensor, expected: torch.Tensor) -> None:
        if expected.numel() or hidden.shape != expected.shape:  # a rank may have no token of a short batch
            check_input(name, hidden, expected, rank)

    def gather(records: Mapping[str, torch.Tensor], name: str, hidden: torch.Tensor) -> torch.Tensor:
        check(name, hidden, own_tokens(records[name]))
        return records[name].clone()

    def scatter(hidden: torch.Tensor) -> torch.Tensor:
        return own_tokens(hidden).clone()

    def run_linear(linear: LinearInfo, features: torch.Tensor) -> torch.Tensor:
        name = linear.name
        call, output = next_call(trace.outputs, name)
        expected = trace.inputs[name][call]
        if name in rows:
            expected = take_pieces(expected, -1, rows[name])
        token_part = run.takes_token_part(name, rows)
        if token_part and expected.dim() != HIDDEN_DIMS:
            raise ShardMismatch(
                f"the input of `{name}` has shape {list(expected.shape)}: the tokens of the batch are in one dimension"
            )
        check(name, features, own_tokens(expected) if token_part else expected)
        if name in columns:
            return take_pieces(output, -1, columns[name]).clone()
        return (own_tokens(output) if token_part or name in scattered else output).clone()

    inputs: dict[str, _Change] = {run.layers[0]: scatter}
    inputs |= {
        name: partial(gather, run.unsharded.inputs, name)
        for name in (*sequence.gather_inputs, *sequence.replicated_modules)
    }
    outputs: dict[str, _Change] = dict.fromkeys(sequence.replicated_modules, scatter)
    outputs[run.layers[-1]] = partial(gather, run.unsharded.outputs, run.layers[-1])
    with ExitStack() as stack:
        for cut_region in reached_regions(task, run.regions):
            stack.enter_context(patched_block(task.model, cut_region, rank))
        stack.enter_context(_mapped(task.model, inputs, outputs))
        _run_forward(task, run_linear, lambda name, _: next_call(trace.expert_outputs, name)[1].clone())


def _run_forward(
    task: PlanningTask,
    run_linear: Callable[[LinearInfo, torch.Tensor], torch.Tensor],
    run_experts: Callable[[str, torch.Tensor], torch.Tensor],
) -> None:
    with errors_as_mismatch():
        run_fake_forward(task.model, task.inputs, run_linear, run_experts, context=task.trace.context)


@contextmanager
def _mapped(model: nn.Module, inputs: Mapping[str, _Change], outputs: Mapping[str, _Change]) -> Iterator[None]:
    """Apply functions to the hidden states that enter (`inputs`) and leave (`outputs`) the named modules."""
    handles = [map_input(model.get_submodule(name), change) for name, change in inputs.items()]
    handles += [map_output(model.get_submodule(name), change) for name, change in outputs.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
