"""Shards modules that hold all experts of a layer in a few tensors: each expert is sharded inside, like one MLP.

How the tensors are laid out (transposed, gate and up interleaved, which bias is which) is found by running the module
on small random weights, once whole and once for each rank, and comparing the sum over the ranks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tpinit.runtime.internals.torch_private import parameters_of
from tpinit.runtime.planning.analysis.linears import flat_expert_shapes
from tpinit.runtime.planning.partition.regions import ShardMismatch
from tpinit.runtime.planning.partition.shard_maps import Placement, ShardMap, even_shard_map
from tpinit.runtime.planning.schema import Cut
from tpinit.runtime.shards import pieces
from tpinit.runtime.slicing import take_pieces

__all__ = ["ExpertsSharding", "fit_experts"]

_UP, _DOWN = "gate_up_proj", "down_proj"
_HIDDEN, _TOKENS = 8, 5  # the hidden size and the number of tokens of a trial run
_ALIGNED = 8  # features: 16 bytes of a 2-byte dtype
_TOLERANCE = 1e-4  # of the largest element of the unsharded output


@dataclass(frozen=True, slots=True)
class ExpertsSharding:
    """How an expert module is sharded.

    `placements` are those of its sharded parameters, by their paths below the module. `attributes` are integer
    attributes, by path, with the value for each rank. `first_rank_only` are replicated biases of the output, which
    only the first rank may add, before the sum over the TP group.
    """

    placements: Mapping[str, Placement]
    attributes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    first_rank_only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _StackedLayout:
    """A possible layout of stacked experts, `gate_up_proj` and `down_proj` of three dimensions.

    `transposed`: the weights are [experts, in, out] instead of [experts, out, in]. `interleaved`: the features of gate
    and up alternate, instead of all of gate before all of up. `column_biases` are biases [experts, 2 * width],
    sharded as gate and up are; `output_biases` are biases [experts, hidden].
    """

    transposed: bool
    interleaved: bool
    column_biases: tuple[str, ...]
    output_biases: tuple[str, ...]

    @property
    def dims(self) -> tuple[int, int]:
        """The dimensions of `gate_up_proj` and of `down_proj` that are sharded."""
        return (2, 1) if self.transposed else (1, 2)

    def gate_up_shard_map(self, width: int, tp_size: int) -> ShardMap:
        """Return the shard map of gate and up, of `width` features each, in one dimension."""
        if self.interleaved:
            return even_shard_map(2 * width, tp_size, 2)
        slices = tuple(pieces((width, width), 1, tp_size, rank) for rank in range(tp_size))
        return ShardMap(slices, 1, (width, width))


def fit_experts(module: nn.Module, tp_size: int) -> ExpertsSharding:
    """Return how to shard all experts of a module over `tp_size` ranks.

    Their weights are stacked, `gate_up_proj` and `down_proj` of [experts, ., .], or flat, [experts * width, hidden].
    Raises ShardMismatch if no layout gives the unsharded result when the outputs of the ranks are summed.
    """
    fit = _fit_flat if flat_expert_shapes(module) else _fit_stacked
    return fit(module, tp_size)


def _fit_stacked(module: nn.Module, tp_size: int) -> ExpertsSharding:
    first_error: ShardMismatch | None = None
    for layout, width in _stacked_layouts(module):
        _check_width(width, tp_size)
        try:
            _try_stacked(module, layout, tp_size, width)
        except ShardMismatch as error:
            first_error = first_error or error
            continue
        width_attributes = [
            name
            for name, value in vars(module).items()
            if type(value) is int and value == width and name.startswith(("intermediate", "expert_dim", "ffn"))
        ]
        up_dim, down_dim = layout.dims
        gate_up = layout.gate_up_shard_map(width, tp_size)
        placements = {
            _UP: Placement(Cut.COLUMN, up_dim, gate_up),
            _DOWN: Placement(Cut.ROW, down_dim, even_shard_map(width, tp_size)),
        }
        placements |= dict.fromkeys(layout.column_biases, Placement(Cut.COLUMN, 1, gate_up))
        lengths = _local_widths(width, tp_size)
        return ExpertsSharding(placements, tuple((name, lengths) for name in width_attributes), layout.output_biases)
    raise first_error or ShardMismatch("the shapes of its experts are not those of a gated MLP")


def _fit_flat(module: nn.Module, tp_size: int) -> ExpertsSharding:
    first_error: ShardMismatch | None = None
    hidden = next(module.parameters()).shape[1]
    for experts, width in flat_expert_shapes(module):
        _check_width(width, tp_size)
        width_attributes = [
            path
            for path, value in _int_attributes(module)
            if value == width and not (value == hidden and _last_name(path).startswith("hidden"))
        ]
        hidden_attributes = [
            path for path, value in _int_attributes(module) if value == hidden and path not in width_attributes
        ]
        try:
            rows = _try_flat(module, experts, width_attributes, hidden_attributes, tp_size)
        except ShardMismatch as error:
            first_error = first_error or error
            continue
        shard_map = _flat_shard_map(experts, width, tp_size)
        placements = {
            name: Placement(Cut.ROW if name in rows else Cut.COLUMN, 0, shard_map)
            for name, _ in module.named_parameters()
        }
        lengths = _local_widths(width, tp_size)
        return ExpertsSharding(placements, tuple((path, lengths) for path in width_attributes))
    raise first_error or ShardMismatch("the shapes of its experts are not those of an MLP")


def _check_width(width: int, tp_size: int) -> None:
    if width < tp_size:
        raise ShardMismatch(f"its experts have {width} features, fewer than {tp_size} ranks")


def _local_widths(width: int, tp_size: int) -> tuple[int, ...]:
    """Return how many features of an expert each rank holds."""
    return tuple(length for ((_, length),) in even_shard_map(width, tp_size).slices)


def _flat_shard_map(experts: int, width: int, tp_size: int) -> ShardMap:
    """Return the shard map of the rows of a flat weight [experts * width, hidden]: a part of each expert's rows."""
    sizes = (width,) * experts
    return ShardMap(tuple(pieces(sizes, 1, tp_size, rank) for rank in range(tp_size)), 1, sizes)


def _int_attributes(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the integer attributes of a module and its submodules, by their paths."""
    for name, submodule in module.named_modules():
        prefix = f"{name}." if name else ""
        yield from ((f"{prefix}{key}", value) for key, value in vars(submodule).items() if type(value) is int)


def _last_name(path: str) -> str:
    return path.rpartition(".")[2]


def _stacked_layouts(module: nn.Module) -> Iterator[tuple[_StackedLayout, int]]:
    """Yield the layouts that the shapes of stacked experts allow, each with the width of one expert.

    Raises ShardMismatch if the module has a parameter that is neither a weight nor a bias of the experts.
    """
    up, down = _parameter(module, _UP), _parameter(module, _DOWN)
    biases = [name for name, value in parameters_of(module).items() if value is not None and name not in (_UP, _DOWN)]
    for transposed in (False, True):
        hidden_dim, up_dim, down_dim = (1, 2, 1) if transposed else (2, 1, 2)
        hidden, up_width, width = up.shape[hidden_dim], up.shape[up_dim], down.shape[down_dim]
        if up_width != 2 * width or down.shape[3 - down_dim] != hidden:
            continue
        bias_shapes = ((len(up), up_width), (len(up), hidden))
        others = [name for name in biases if tuple(_parameter(module, name).shape) not in bias_shapes]
        if others:
            raise ShardMismatch(f"its experts have other parameters too: {', '.join(sorted(others))}")
        # If 2 * width equals hidden, the shape of a bias does not show which one it is: both roles are tried.
        roles = [
            [
                is_column
                for is_column in (True, False)
                if _parameter(module, name).shape[1] == (up_width if is_column else hidden)
            ]
            for name in biases
        ]
        for interleaved, chosen in itertools.product((False, True), itertools.product(*roles)):
            column_biases = tuple(name for name, is_column in zip(biases, chosen, strict=True) if is_column)
            output_biases = tuple(name for name, is_column in zip(biases, chosen, strict=True) if not is_column)
            yield _StackedLayout(transposed, interleaved, column_biases, output_biases), width


def _parameter(module: nn.Module, name: str) -> torch.Tensor:
    parameter = getattr(module, name)
    assert isinstance(parameter, torch.Tensor)
    return parameter


# --- trial runs ----------------------------------------------------------------------------------------------


def _try_stacked(module: nn.Module, layout: _StackedLayout, tp_size: int, real_width: int) -> None:
    """Run stacked experts on small weights in this layout, whole and on each rank's part. Raises ShardMismatch.

    The parts are of unequal widths, unless the parts of the real width are equal and aligned: some kernels take
    aligned widths only.
    """
    is_aligned = real_width % (_ALIGNED * tp_size) == 0
    experts, width = len(_parameter(module, _UP)), _ALIGNED * tp_size if is_aligned else 2 * tp_size + 1
    random = _RandomTensors()
    weights = {_UP: random(experts, 2 * width, _HIDDEN), _DOWN: random(experts, _HIDDEN, width)}
    if layout.transposed:
        weights = {name: weight.transpose(1, 2).contiguous() for name, weight in weights.items()}
    weights |= {name: random(experts, 2 * width) for name in layout.column_biases}
    weights |= {name: random(experts, _HIDDEN) for name in layout.output_biases}
    up_dim, down_dim = layout.dims
    gate_up = layout.gate_up_shard_map(width, tp_size)
    shards = {_UP: (up_dim, gate_up), _DOWN: (down_dim, even_shard_map(width, tp_size))}
    shards |= dict.fromkeys(layout.column_biases, (1, gate_up))
    sizes = _parameter(module, _UP).shape[1:]
    hidden = {
        name: _HIDDEN
        for name, value in vars(module).items()
        if type(value) is int and value in sizes and name.startswith("hidden")
    }
    ranks = [(_local_weights(weights, shards, layout.output_biases, rank), hidden) for rank in range(tp_size)]
    _compare(module, (weights, hidden), ranks, experts, random)


def _try_flat(
    module: nn.Module, experts: int, width_attributes: Sequence[str], hidden_attributes: Sequence[str], tp_size: int
) -> frozenset[str]:
    """Run flat experts on small weights, whole and on each rank's part. Raises ShardMismatch.

    Returns the names of the row weights: those whose columns are the features of the output.
    """
    width, random = 2 * tp_size + 1, _RandomTensors()
    weights = {name: random(experts * width, _HIDDEN) for name, _ in module.named_parameters()}
    shards = dict.fromkeys(weights, (0, _flat_shard_map(experts, width, tp_size)))
    hidden = dict.fromkeys(hidden_attributes, _HIDDEN)
    ranks = [
        (_local_weights(weights, shards, (), rank), {**hidden, **dict.fromkeys(width_attributes, length)})
        for rank, length in enumerate(_local_widths(width, tp_size))
    ]
    attributes = {**hidden, **dict.fromkeys(width_attributes, width)}
    inputs = _compare(module, (weights, attributes), ranks, experts, random)
    rows = set()
    for name, weight in weights.items():
        # With the first column of a row weight set to zero, the first feature of the output is zero.
        without_first = weight.clone()
        without_first[:, 0] = 0
        with torch.no_grad(), _replaced(module, {**weights, name: without_first}, attributes):
            if not module(*inputs)[..., 0].any():
                rows.add(name)
    return frozenset(rows)


class _RandomTensors:
    """A source of random tensors, which starts from the same seed for every module."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator)


def _local_weights(
    weights: Mapping[str, torch.Tensor],
    shards: Mapping[str, tuple[int, ShardMap]],
    output_biases: Sequence[str],
    rank: int,
) -> dict[str, torch.Tensor]:
    """Return the weights of one rank: its slices, and the output biases on the first rank, zeros on the others."""
    local = {
        name: take_pieces(weights[name], dim, shard_map.slices[rank]).contiguous()
        for name, (dim, shard_map) in shards.items()
    }
    return local | {name: weights[name] if rank == 0 else torch.zeros_like(weights[name]) for name in output_biases}


_Replaced = tuple[Mapping[str, torch.Tensor], Mapping[str, int]]  # weights and integer attributes, by path


def _compare(
    module: nn.Module, whole: _Replaced, ranks: Sequence[_Replaced], experts: int, random: _RandomTensors
) -> tuple[torch.Tensor, ...]:
    """Compare the output of the module on whole weights with the sum of its outputs on each rank's weights.

    Returns the inputs that it was run on. Raises ShardMismatch if the outputs differ, or if no inputs can be run.
    """
    hidden_states = random(_TOKENS, _HIDDEN)
    chosen = torch.arange(_TOKENS * 2).reshape(_TOKENS, 2) % experts
    routed = (hidden_states, chosen, random(_TOKENS, 2).sigmoid())
    sorted_by_expert = (random(experts * 2, _HIDDEN),)
    first_error: Exception | None = None
    # Most modules take the experts chosen for each token and their scores; some take the tokens sorted by expert.
    for inputs in (routed, sorted_by_expert):
        try:
            with torch.no_grad():
                with _replaced(module, *whole):
                    expected = module(*inputs)
                total = torch.zeros_like(expected)
                for rank in ranks:
                    with _replaced(module, *rank):
                        total = total + module(*inputs)
        except Exception as error:
            first_error = first_error or error
            continue
        off = float((total - expected).abs().max() / expected.abs().max())
        if not off < _TOLERANCE:
            raise ShardMismatch(
                "the sum of the outputs of its sharded experts differs from the unsharded output "
                f"(max error {off:.2g} x max abs)"
            )
        return inputs
    raise ShardMismatch(
        f"its sharded experts can't be run: {type(first_error).__name__}: {str(first_error)[:160]}"
    ) from first_error


@contextmanager
def _replaced(module: nn.Module, weights: Mapping[str, torch.Tensor], attributes: Mapping[str, int]) -> Iterator[None]:
    """Give a module other weights and integer attributes, by path, for the time of the context."""

    def attributes_of_owner(path: str) -> dict[str, Any]:
        return module.get_submodule(path.rpartition(".")[0]).__dict__

    originals = {path: attributes_of_owner(path)[_last_name(path)] for path in attributes}
    for path, value in {**weights, **attributes}.items():
        attributes_of_owner(path)[_last_name(path)] = value
    try:
        yield
    finally:
        for path in weights:
            del attributes_of_owner(path)[_last_name(path)]
        for path, original in originals.items():
            attributes_of_owner(path)[_last_name(path)] = original
