"""In a run in which nothing is dropped, dropout is the identity, and what is drawn to skip by is high."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional
from tpinit.runtime.planning.analysis.dropout_off import DropoutDisabled, fixed_host_rng, without_dropout

FEATURES = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
ATTEND = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default

DROPPING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "dropout": lambda x: functional.dropout(x, 0.4),
    "in place": lambda x: functional.dropout(x.clone(), 0.4, inplace=True),
    "whole features": lambda x: functional.dropout1d(x, 0.4),
    "native": lambda x: torch.native_dropout(x, 0.4, True)[0],
    "attention": lambda x: functional.scaled_dot_product_attention(x, x, x, dropout_p=0.4),
    "fused attention": lambda x: ATTEND(x[None], x[None], x[None], 0.4)[0][0],
}


@pytest.mark.parametrize("name", DROPPING)
def test_dropout_drops_nothing(name: str) -> None:
    drop = DROPPING[name]
    expected = functional.scaled_dot_product_attention(FEATURES, FEATURES, FEATURES) if "att" in name else FEATURES
    with torch.no_grad(), DropoutDisabled():
        assert torch.allclose(drop(FEATURES), expected, atol=1e-5)
    if name != "fused attention":  # which refuses to drop out on a CPU
        with torch.no_grad():
            assert not torch.allclose(drop(FEATURES), expected, atol=1e-5)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(3),
        lambda: torch.rand(3, dtype=torch.bfloat16),
        lambda: torch.rand(3, generator=torch.Generator()),
        lambda: torch.rand_like(torch.ones(3)),
        lambda: torch.empty(3).uniform_(),
    ],
)
def test_numbers_to_skip_by_are_high(draw: Callable[[], torch.Tensor]) -> None:
    with DropoutDisabled():
        drawn = draw()
    assert drawn.shape == (3,)
    assert drawn.dtype == draw().dtype
    assert ((drawn > 0.98) & (drawn < 1)).all()


def test_noise_is_within_its_bounds_and_a_mask_lets_all_through() -> None:
    ones = torch.ones(3)
    with DropoutDisabled():
        noise = torch.empty(3).uniform_(-2, 2)
        masks = [torch.bernoulli(ones * 0.1), torch.bernoulli(ones, 0.1), torch.empty(3).bernoulli_(ones * 0.1)]
    assert ((noise > 1.9) & (noise < 2)).all()
    assert all(mask.bool().all() for mask in masks)


def test_what_drops_nothing_is_let_alone() -> None:
    randn = torch.ops.aten.randn.default
    assert without_dropout(randn, ([3],), {}) is None
    assert without_dropout(ATTEND, (FEATURES[None],) * 3, {}) is None
    assert without_dropout(ATTEND, (FEATURES[None],) * 3, {"dropout_p": 0.1}) is not None


def test_python_and_numpy_draw_the_same_in_every_run() -> None:
    import random

    import numpy

    def drawn() -> list[object]:
        with fixed_host_rng():
            order = list(range(20))
            random.shuffle(order)
            high = [random.random(), random.uniform(2, 3), numpy.random.rand(), float(numpy.random.uniform(1, 2, 1)[0])]
            return [order, numpy.random.permutation(20).tolist(), high]

    first = drawn()
    random.random(), numpy.random.rand()
    assert drawn() == first
    assert first[2] == pytest.approx([0.99, 2.99, 0.99, 1.99])
    assert {random.random() for _ in range(9)} != {0.99}, "it is for the time of a run"
