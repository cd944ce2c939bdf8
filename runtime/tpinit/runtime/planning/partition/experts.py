"""Blocks that hold all experts of a layer in few tensors: each expert is cut inside, like one MLP."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tpinit.runtime.planning.analysis.linears import flat_expert_shapes
from tpinit.runtime.planning.partition.regions import ShardMismatch
from tpinit.runtime.planning.partition.shard_maps import ShardMap, even_shard_map
from tpinit.runtime.planning.schema import Cut
from tpinit.runtime.shards import pieces
from tpinit.runtime.slicing import take_pieces

__all__ = ["ExpertsSharding", "fit_experts"]

_UP, _DOWN = "gate_up_proj", "down_proj"
_HIDDEN, _TOKENS = 8, 5
_ALIGNED = 8  # features: 16 bytes of the smallest numbers that are trained


@dataclass(frozen=True, slots=True)
class ExpertsSharding:
    """How the parameters of a block of experts lie: cut, dimension and spread; and numbers that it must be told.

    `once` are biases of the whole output: whole on every rank, and added by one of them, before the sum.
    """

    placements: Mapping[str, tuple[Cut, int, ShardMap]]
    attributes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    first_rank_only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Guess:
    """How a block of experts may be meant: which way its weights lie, how gate and up are fused, what its biases are.

    `along` are biases [experts, 2 * width], which lie as the columns do; `once` those [experts, hidden].
    """

    transposed: bool
    in_turn: bool
    along: tuple[str, ...]
    once: tuple[str, ...]

    @property
    def dims(self) -> tuple[int, int]:
        """The dimensions of the two weights that are cut."""
        return (2, 1) if self.transposed else (1, 2)

    def spread(self, width: int, tp_size: int) -> ShardMap:
        """Return how gate and up, of `width` each, lie together: in turn, or one after the other."""
        if self.in_turn:
            return even_shard_map(2 * width, tp_size, 2)
        ranks = tuple(pieces((width, width), 1, tp_size, rank) for rank in range(tp_size))
        return ShardMap(ranks, 1, (width, width))


def fit_experts(module: nn.Module, tp_size: int) -> ExpertsSharding:
    """Find how to cut all weights of a block of experts, by running the block on small weights.

    They are `gate_up_proj` and `down_proj` [experts, ., .], or whatever there is of [experts * width, hidden]. Raises
    Mismatch where no way gives parts that sum up to the whole.
    """
    fit = _fit_rows if flat_expert_shapes(module) else _fit_stacked
    return fit(module, tp_size)


def _fit_stacked(module: nn.Module, tp_size: int) -> ExpertsSharding:
    first: ShardMismatch | None = None
    for guess, width in _guesses(module):
        _check_width(width, tp_size)
        try:
            _rehearse_stacked(module, guess, tp_size, width)
        except ShardMismatch as error:
            first = first or error
            continue
        up_dim, down_dim = guess.dims
        row, fused = even_shard_map(width, tp_size), guess.spread(width, tp_size)
        told = [
            name
            for name, value in vars(module).items()
            if type(value) is int and value == width and name.startswith(("intermediate", "expert_dim", "ffn"))
        ]
        spreads = {_UP: (Cut.COLUMN, up_dim, fused), _DOWN: (Cut.ROW, down_dim, row)}
        spreads |= dict.fromkeys(guess.along, (Cut.COLUMN, 1, fused))
        return ExpertsSharding(spreads, tuple((name, _lengths(width, tp_size)) for name in told), guess.once)
    raise first or ShardMismatch("the shapes of its experts are not those of a gated MLP")


def _fit_rows(module: nn.Module, tp_size: int) -> ExpertsSharding:
    first: ShardMismatch | None = None
    hidden = next(module.parameters()).shape[1]
    for experts, width in flat_expert_shapes(module):
        _check_width(width, tp_size)
        told = [
            path
            for path, value in _numbers(module)
            if value == width and not (value == hidden and _last(path).startswith("hidden"))
        ]
        sizes = [path for path, value in _numbers(module) if value == hidden and path not in told]
        try:
            rows = _rehearse_rows(module, experts, told, sizes, tp_size)
        except ShardMismatch as error:
            first = first or error
            continue
        spread = _in_rows(experts, width, tp_size)
        spreads = {name: (Cut.ROW if name in rows else Cut.COLUMN, 0, spread) for name, _ in module.named_parameters()}
        return ExpertsSharding(spreads, tuple((path, _lengths(width, tp_size)) for path in told))
    raise first or ShardMismatch("the shapes of its experts are not those of an MLP")


def _check_width(width: int, tp_size: int) -> None:
    if width < tp_size:
        raise ShardMismatch(f"its experts have {width} features, fewer than {tp_size} ranks")


def _lengths(width: int, tp_size: int) -> tuple[int, ...]:
    return tuple(length for ((_, length),) in even_shard_map(width, tp_size).slices)


def _in_rows(experts: int, width: int, tp_size: int) -> ShardMap:
    """Return the spread of [experts * width, .]: of each expert a part."""
    blocks = (width,) * experts
    return ShardMap(tuple(pieces(blocks, 1, tp_size, rank) for rank in range(tp_size)), 1, blocks)


def _numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the numbers of a block and of what is below, by their paths."""
    for name, one in module.named_modules():
        prefix = f"{name}." if name else ""
        yield from ((f"{prefix}{key}", value) for key, value in vars(one).items() if type(value) is int)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _guesses(module: nn.Module) -> Iterator[tuple[_Guess, int]]:
    """Yield what the shapes allow, with the width of an expert. Raises Mismatch for parameters that are no biases."""
    up, down = _weight(module, _UP), _weight(module, _DOWN)
    biases = [name for name, one in module._parameters.items() if one is not None and name not in (_UP, _DOWN)]
    for transposed in (False, True):
        hidden_dim, up_dim, down_dim = (1, 2, 1) if transposed else (2, 1, 2)
        hidden, double, width = up.shape[hidden_dim], up.shape[up_dim], down.shape[down_dim]
        if double != 2 * width or down.shape[3 - down_dim] != hidden:
            continue
        strange = [
            name for name in biases if tuple(_weight(module, name).shape) not in ((len(up), double), (len(up), hidden))
        ]
        if strange:
            raise ShardMismatch(f"its experts have {', '.join(sorted(strange))} besides")
        # Where both sizes are the same, what a bias is for is found by trying.
        roles = [
            [along for along in (True, False) if _weight(module, name).shape[1] == (double if along else hidden)]
            for name in biases
        ]
        for in_turn, chosen in itertools.product((False, True), itertools.product(*roles)):
            along = tuple(name for name, one in zip(biases, chosen, strict=True) if one)
            once = tuple(name for name, one in zip(biases, chosen, strict=True) if not one)
            yield _Guess(transposed, in_turn, along, once), width


def _weight(module: nn.Module, name: str) -> torch.Tensor:
    weight = getattr(module, name)
    assert isinstance(weight, torch.Tensor)
    return weight


def _rehearse_stacked(module: nn.Module, guess: _Guess, tp_size: int, real_width: int) -> None:
    """Run the block on small random weights, whole and on each rank's part; compare the sum.

    The parts are uneven, unless those of the real width are even and aligned: some kernels take no others.
    """
    aligned = real_width % (_ALIGNED * tp_size) == 0
    experts, width = len(_weight(module, _UP)), _ALIGNED * tp_size if aligned else 2 * tp_size + 1
    random = _Random()
    whole = {_UP: random(experts, 2 * width, _HIDDEN), _DOWN: random(experts, _HIDDEN, width)}
    if guess.transposed:
        whole = {name: one.transpose(1, 2).contiguous() for name, one in whole.items()}
    whole |= {name: random(experts, 2 * width) for name in guess.along}
    whole |= {name: random(experts, _HIDDEN) for name in guess.once}
    up_dim, down_dim = guess.dims
    lies = {_UP: (up_dim, guess.spread(width, tp_size)), _DOWN: (down_dim, even_shard_map(width, tp_size))}
    lies |= dict.fromkeys(guess.along, (1, guess.spread(width, tp_size)))
    sizes = _weight(module, _UP).shape[1:]
    hidden = {
        name: _HIDDEN
        for name, value in vars(module).items()
        if type(value) is int and value in sizes and name.startswith("hidden")
    }
    parts = [(_held(whole, lies, guess.once, rank), hidden) for rank in range(tp_size)]
    _compare(module, (whole, hidden), parts, experts, random)


def _rehearse_rows(
    module: nn.Module, experts: int, told: Sequence[str], sizes: Sequence[str], tp_size: int
) -> frozenset[str]:
    """The same for weights in rows. Returns those whose columns are columns of the output: the last of an MLP."""
    width, random = 2 * tp_size + 1, _Random()
    whole = {name: random(experts * width, _HIDDEN) for name, _ in module.named_parameters()}
    lies = dict.fromkeys(whole, (0, _in_rows(experts, width, tp_size)))
    hidden = dict.fromkeys(sizes, _HIDDEN)
    parts = [
        (_held(whole, lies, (), rank), {**hidden, **dict.fromkeys(told, length)})
        for rank, length in enumerate(_lengths(width, tp_size))
    ]
    numbers = {**hidden, **dict.fromkeys(told, width)}
    given = _compare(module, (whole, numbers), parts, experts, random)
    rows = set()
    for name, one in whole.items():
        less = one.clone()
        less[:, 0] = 0
        with torch.no_grad(), _small(module, {**whole, name: less}, numbers):
            if not module(*given)[..., 0].any():
                rows.add(name)
    return frozenset(rows)


class _Random:
    """A source of random tensors, the same ones for every block."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator)


def _held(
    whole: Mapping[str, torch.Tensor], lies: Mapping[str, tuple[int, ShardMap]], once: Sequence[str], rank: int
) -> dict[str, torch.Tensor]:
    """Return what a rank works on: its parts, and of what is added once, zeros on all ranks but the first."""
    held = {
        name: take_pieces(whole[name], dim, spread.slices[rank]).contiguous() for name, (dim, spread) in lies.items()
    }
    return held | {name: whole[name] if rank == 0 else torch.zeros_like(whole[name]) for name in once}


_Parts = tuple[Mapping[str, torch.Tensor], Mapping[str, int]]


def _compare(
    module: nn.Module, whole: _Parts, parts: Sequence[_Parts], experts: int, random: _Random
) -> tuple[torch.Tensor, ...]:
    """Compare what the block gives with whole weights to the sum over its parts. Returns what it was given.

    Raises Mismatch where they differ, and where it can't be run.
    """
    chosen = torch.arange(_TOKENS * 2).reshape(_TOKENS, 2) % experts
    error: Exception | None = None
    # Most blocks are given a choice of experts for each token; some, the tokens of every expert in turn.
    for given in ((random(_TOKENS, _HIDDEN), chosen, random(_TOKENS, 2).sigmoid()), (random(experts * 2, _HIDDEN),)):
        try:
            with torch.no_grad():
                with _small(module, *whole):
                    expected = module(*given)
                total = torch.zeros_like(expected)
                for part in parts:
                    with _small(module, *part):
                        total = total + module(*given)
        except Exception as raised:
            error = error or raised
            continue
        off = float((total - expected).abs().max() / expected.abs().max())
        if not off < 1e-4:
            raise ShardMismatch(f"the parts of its experts do not sum up to the whole: off by {off:.2g}")
        return given
    raise ShardMismatch(f"its experts can't be run on a part: {type(error).__name__}: {str(error)[:160]}") from error


@contextmanager
def _small(module: nn.Module, weights: Mapping[str, torch.Tensor], numbers: Mapping[str, int]) -> Iterator[None]:
    """Let a block of experts work on other weights, and the sizes that go with them, by their paths."""

    def owner(path: str) -> dict[str, Any]:
        return module.get_submodule(path.rpartition(".")[0]).__dict__

    kept = {path: owner(path)[_last(path)] for path in numbers}
    for path, one in {**weights, **numbers}.items():
        owner(path)[_last(path)] = one
    try:
        yield
    finally:
        for path in weights:
            del owner(path)[_last(path)]
        for path, number in kept.items():
            owner(path)[_last(path)] = number
