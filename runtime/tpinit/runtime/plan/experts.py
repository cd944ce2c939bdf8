"""Blocks of experts whose weights are tensors of three dimensions: each expert is cut inside, like one MLP."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from tpinit.runtime.plan.layouts import Spread, even
from tpinit.runtime.plan.records import Cut
from tpinit.runtime.plan.rehearsal import Mismatch, held_part
from tpinit.runtime.shards import pieces

__all__ = ["ExpertsFit", "fit_experts"]

_UP, _DOWN = "gate_up_proj", "down_proj"
_HIDDEN, _TOKENS = 8, 5
_ALIGNED = 8  # features: 16 bytes of the smallest numbers that are trained


@dataclass(frozen=True, slots=True)
class ExpertsFit:
    """How the parameters of a block of experts lie: cut, dimension and spread; and numbers that it must be told.

    `once` are biases of the whole output: whole on every rank, and added by one of them, before the sum.
    """

    spreads: Mapping[str, tuple[Cut, int, Spread]]
    numbers: tuple[tuple[str, tuple[int, ...]], ...] = ()
    once: tuple[str, ...] = ()


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

    def spread(self, width: int, tp_size: int) -> Spread:
        """Return how gate and up, of `width` each, lie together: in turn, or one after the other."""
        if self.in_turn:
            return even(2 * width, tp_size, 2)
        ranks = tuple(pieces((width, width), 1, tp_size, rank) for rank in range(tp_size))
        return Spread(ranks, 1, (width, width))


def fit_experts(module: nn.Module, tp_size: int) -> ExpertsFit:
    """Find how to cut `gate_up_proj` and `down_proj` [experts, ., .], by running the block on small weights.

    Raises Mismatch where no way gives parts that sum up to the whole.
    """
    first: Mismatch | None = None
    for guess, width in _guesses(module):
        if width < tp_size:
            raise Mismatch(f"its experts have {width} features, fewer than {tp_size} ranks")
        try:
            _rehearse(module, guess, tp_size, width)
        except Mismatch as error:
            first = first or error
            continue
        up_dim, down_dim = guess.dims
        row, fused = even(width, tp_size), guess.spread(width, tp_size)
        numbers = tuple(
            (name, tuple(row.ranks[rank][0][1] for rank in range(tp_size)))
            for name, value in vars(module).items()
            if type(value) is int and value == width and name.startswith(("intermediate", "expert_dim", "ffn"))
        )
        spreads = {_UP: (Cut.COLUMN, up_dim, fused), _DOWN: (Cut.ROW, down_dim, row)}
        spreads |= dict.fromkeys(guess.along, (Cut.COLUMN, 1, fused))
        return ExpertsFit(spreads, numbers, guess.once)
    raise first or Mismatch("the shapes of its experts are not those of a gated MLP")


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
            raise Mismatch(f"its experts have {', '.join(sorted(strange))} besides")
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


def _rehearse(module: nn.Module, guess: _Guess, tp_size: int, real_width: int) -> None:
    """Run the block's own forward on small random weights, whole and on each rank's part; compare the sum.

    The parts are uneven, unless those of the real width are even and aligned: some kernels take no others.
    """
    aligned = real_width % (_ALIGNED * tp_size) == 0
    experts, width = len(_weight(module, _UP)), _ALIGNED * tp_size if aligned else 2 * tp_size + 1
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    whole = {_UP: random(experts, 2 * width, _HIDDEN), _DOWN: random(experts, _HIDDEN, width)}
    if guess.transposed:
        whole = {name: one.transpose(1, 2).contiguous() for name, one in whole.items()}
    whole |= {name: random(experts, 2 * width) for name in guess.along}
    whole |= {name: random(experts, _HIDDEN) for name in guess.once}
    up_dim, down_dim = guess.dims
    lies = {_UP: (up_dim, guess.spread(width, tp_size)), _DOWN: (down_dim, even(width, tp_size))}
    lies |= dict.fromkeys(guess.along, (1, guess.spread(width, tp_size)))
    chosen = torch.arange(_TOKENS * 2).reshape(_TOKENS, 2) % experts
    routed = (random(_TOKENS, _HIDDEN), chosen, torch.rand((_TOKENS, 2), generator=generator))
    error: Exception | None = None
    # Most blocks are given a choice of experts for each token; some, the tokens of every expert in turn.
    for given in (routed, (random(experts * 2, _HIDDEN),)):
        try:
            expected, total = _run(module, whole, lies, guess.once, tp_size, given)
        except Exception as raised:
            error = error or raised
            continue
        off = float((total - expected).abs().max() / expected.abs().max())
        if not off < 1e-4:
            raise Mismatch(f"the parts of its experts do not sum up to the whole: off by {off:.2g}")
        return
    raise Mismatch(f"its experts can't be run on a part: {type(error).__name__}: {str(error)[:160]}") from error


def _run(
    module: nn.Module,
    whole: Mapping[str, torch.Tensor],
    lies: Mapping[str, tuple[int, Spread]],
    once: Sequence[str],
    tp_size: int,
    given: tuple[torch.Tensor, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the block gives with whole weights, and the sum of what it gives with each rank's."""
    with torch.no_grad():
        with _weights(module, whole):
            expected = module(*given)
        total = torch.zeros_like(expected)
        for rank in range(tp_size):
            held = {
                name: held_part(whole[name], dim, one.ranks[rank]).contiguous() for name, (dim, one) in lies.items()
            }
            held |= {name: whole[name] if rank == 0 else torch.zeros_like(whole[name]) for name in once}
            with _weights(module, held):
                total = total + module(*given)
    return expected, total


@contextmanager
def _weights(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Let a block of experts work on other weights, and the sizes that go with them."""
    sizes = _weight(module, _UP).shape[1:]
    hidden = {
        name: value
        for name, value in vars(module).items()
        if type(value) is int and value in sizes and name.startswith("hidden")
    }
    module.__dict__.update(weights)
    module.__dict__.update(dict.fromkeys(hidden, _HIDDEN))
    try:
        yield
    finally:
        module.__dict__.update(hidden)
        for name in weights:
            del module.__dict__[name]
