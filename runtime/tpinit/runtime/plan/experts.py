"""Blocks of experts whose weights are tensors of three dimensions: each expert is cut inside, like one MLP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from tpinit.runtime.plan.layouts import Spread, even
from tpinit.runtime.plan.records import Cut
from tpinit.runtime.plan.rehearsal import Mismatch, held_part
from tpinit.runtime.shards import pieces

__all__ = ["ExpertsFit", "fit_experts"]

_HIDDEN, _TOKENS = 8, 5
_ALIGNED = 8  # features: 16 bytes of the smallest numbers that are trained


@dataclass(frozen=True, slots=True)
class ExpertsFit:
    """How the parameters of a block of experts lie: cut, dimension and spread; and numbers that it must be told."""

    spreads: Mapping[str, tuple[Cut, int, Spread]]
    numbers: tuple[tuple[str, tuple[int, ...]], ...] = ()


def fit_experts(module: nn.Module, tp_size: int) -> ExpertsFit:
    """Find how to cut `gate_up_proj` and `down_proj` [experts, ., .], by running the block on small weights.

    Raises Mismatch where no way gives parts that sum up to the whole.
    """
    others = [name for name, one in module._parameters.items() if one is not None]
    if set(others) - {"gate_up_proj", "down_proj"}:
        raise Mismatch(f"its experts have {', '.join(sorted(set(others) - {'gate_up_proj', 'down_proj'}))} besides")
    up, down = module.gate_up_proj, module.down_proj
    assert isinstance(up, torch.Tensor)
    assert isinstance(down, torch.Tensor)
    first: Mismatch | None = None
    for transposed in (False, True):
        hidden_dim, up_dim, down_dim = (2, 1, 2) if not transposed else (1, 2, 1)
        hidden, double, width = up.shape[hidden_dim], up.shape[up_dim], down.shape[down_dim]
        if double != 2 * width or down.shape[3 - down_dim] != hidden:
            continue
        if width < tp_size:
            raise Mismatch(f"its experts have {width} features, fewer than {tp_size} ranks")
        for in_turn in (False, True):
            fused = _fused(width, in_turn, tp_size)
            try:
                _rehearse(module, transposed, in_turn, tp_size, width)
            except Mismatch as error:
                first = first or error
                continue
            numbers = tuple(
                (name, tuple(even(width, tp_size).ranks[rank][0][1] for rank in range(tp_size)))
                for name, value in vars(module).items()
                if type(value) is int and value == width and name.startswith(("intermediate", "expert_dim", "ffn"))
            )
            return ExpertsFit(
                {
                    "gate_up_proj": (Cut.COLUMN, up_dim, fused),
                    "down_proj": (Cut.ROW, down_dim, even(width, tp_size)),
                },
                numbers,
            )
    raise first or Mismatch("the shapes of its experts are not those of a gated MLP")


def _up(module: nn.Module) -> torch.Tensor:
    up = module.gate_up_proj
    assert isinstance(up, torch.Tensor)
    return up


def _fused(width: int, in_turn: bool, tp_size: int) -> Spread:
    if in_turn:
        return even(2 * width, tp_size, 2)
    ranks = tuple(pieces((width, width), 1, tp_size, rank) for rank in range(tp_size))
    return Spread(ranks, 1, (width, width))


def _rehearse(module: nn.Module, transposed: bool, in_turn: bool, tp_size: int, real_width: int) -> None:
    """Run the block's own forward on small random weights, whole and on each rank's part; compare the sum.

    The parts are uneven, unless those of the real width are even and aligned: some kernels take no others.
    """
    aligned = real_width % (_ALIGNED * tp_size) == 0
    experts, width = _up(module).shape[0], _ALIGNED * tp_size if aligned else 2 * tp_size + 1
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    up, down = random(experts, 2 * width, _HIDDEN), random(experts, _HIDDEN, width)
    if transposed:
        up, down = up.transpose(1, 2).contiguous(), down.transpose(1, 2).contiguous()
    chosen = torch.arange(_TOKENS * 2).reshape(_TOKENS, 2) % experts
    tokens, weights = random(_TOKENS, _HIDDEN), torch.rand((_TOKENS, 2), generator=generator)
    spread, row = _fused(width, in_turn, tp_size), even(width, tp_size)
    up_dim, down_dim = (1, 2) if not transposed else (2, 1)
    try:
        with torch.no_grad():
            with _weights(module, up, down):
                whole = module(tokens, chosen, weights)
            total = torch.zeros_like(whole)
            for rank in range(tp_size):
                part = held_part(up, up_dim, spread.ranks[rank]), held_part(down, down_dim, row.ranks[rank])
                with _weights(module, part[0].contiguous(), part[1].contiguous()):
                    total = total + module(tokens, chosen, weights)
    except Exception as error:
        raise Mismatch(f"its experts can't be run on a part: {type(error).__name__}: {str(error)[:160]}") from error
    off = float((total - whole).abs().max() / whole.abs().max())
    if not off < 1e-4:
        raise Mismatch(f"the parts of its experts do not sum up to the whole: off by {off:.2g}")


@contextmanager
def _weights(module: nn.Module, up: torch.Tensor, down: torch.Tensor) -> Iterator[None]:
    """Let a block of experts work on other weights, and the sizes that go with them."""
    sizes = {
        name: value for name, value in vars(module).items() if type(value) is int and value in _up(module).shape[1:]
    }
    module.__dict__["gate_up_proj"], module.__dict__["down_proj"] = up, down
    for name, value in sizes.items():
        if name.startswith("hidden"):
            module.__dict__[name] = _HIDDEN
        del value
    try:
        yield
    finally:
        module.__dict__.update(sizes)
        del module.__dict__["gate_up_proj"], module.__dict__["down_proj"]
