"""Column matrices that read one tensor are one operation, whoever is called first, and the same one as apart."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint
from tpinit.runtime.errors import EngineError
from tpinit.runtime.parallel import LayerKind, TPRegionInput, convert_module, fuse_columns


@pytest.fixture(scope="module")
def group() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


class Siblings(nn.Module):
    """Three matrices over one tensor; `order` says in which order they are called, and whether all are."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.q, self.k, self.v = nn.Linear(6, 4), nn.Linear(6, 2, bias=False), nn.Linear(6, 2)

    def forward(self, hidden: torch.Tensor, order: str = "qkv") -> torch.Tensor:
        normed = self.norm(hidden)
        return sum((getattr(self, name)(normed).square().sum() for name in order), torch.zeros(()))


@pytest.fixture
def pair(group: Any) -> tuple[Siblings, Siblings]:
    torch.manual_seed(0)
    whole = Siblings()
    cut = copy.deepcopy(whole)
    layers = [cut.q, cut.k, cut.v]
    entry = TPRegionInput(group)
    for layer in layers:
        convert_module(layer, LayerKind.COLUMN, group, entry)
    fuse_columns(layers, group)
    return whole, cut


def hidden() -> torch.Tensor:
    return torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()


def assert_alike(whole: Any, cut: Any, run: Any) -> None:
    for one in (whole, cut):
        one.zero_grad()
        run(one).backward()
    for (name, right), got in zip(whole.named_parameters(), cut.parameters(), strict=True):
        assert (right.grad is None) == (got.grad is None), name
        assert right.grad is None or torch.allclose(right.grad, got.grad, 1e-5, 1e-6), name


def reductions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    original = dist.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    monkeypatch.setattr(dist, "all_reduce", counted)
    return sizes


@pytest.mark.parametrize("order", ["qkv", "vkq", "kv", "q", "qkvq", "qq"])
def test_gradients_are_those_of_matrices_apart(pair: Any, order: str) -> None:
    assert_alike(*pair, lambda one: one(hidden(), order))


@pytest.mark.parametrize(("order", "expected"), [("qkv", 1), ("vq", 1), ("qkvk", 2)])
def test_one_reduction_serves_all_that_are_called(
    pair: Any, monkeypatch: pytest.MonkeyPatch, order: str, expected: int
) -> None:
    sizes = reductions(monkeypatch)
    pair[1](hidden(), order).backward()
    assert sizes == [2 * 3 * 6] * expected


def test_what_nobody_takes_goes_when_the_backward_is_done(pair: Any) -> None:
    cut = pair[1]
    fused_with = cut.q.tp_fused
    loss = cut(hidden(), "q")
    assert len(fused_with._outputs) == 2
    loss.backward()
    assert not fused_with._outputs


def test_a_tensor_that_changed_is_another_one(pair: Any) -> None:
    def run(model: Any) -> torch.Tensor:
        features = model.norm(hidden()).clone()
        first = model.q(features).sum()
        features.mul_(2)
        return first * 0 + model.k(features).square().sum()

    whole, cut = pair
    with torch.no_grad():
        assert torch.allclose(run(whole), run(cut))
    found = [one.norm(hidden()).clone() for one in pair]
    outputs = []
    for one, features in zip(pair, found, strict=True):
        one.q(features)
        with torch.no_grad():
            features.mul_(2)
        outputs.append(one.k(features))
    assert torch.allclose(*outputs)


def test_weights_that_are_frozen_get_nothing(pair: Any) -> None:
    for one in pair:
        one.q.weight.requires_grad_(False)
        one.v.requires_grad_(False)
    assert_alike(*pair, lambda one: one(hidden()))


def test_checkpointing_computes_the_same_again(pair: Any) -> None:
    for reentrant in (False, True):
        assert_alike(*pair, lambda one, how=reentrant: checkpoint(one, hidden(), use_reentrant=how))


def test_autocast_is_followed(pair: Any) -> None:
    def run(one: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return one(hidden()).float()

    assert_alike(*pair, run)
    with torch.autocast("cpu", torch.bfloat16):
        assert pair[1].q(hidden()).dtype is torch.bfloat16


def test_a_copy_has_a_door_of_its_own(pair: Any) -> None:
    twin = copy.deepcopy(pair[1])
    assert twin.q.tp_fused is twin.k.tp_fused is not pair[1].q.tp_fused
    assert twin.q.tp_fused.layers == (twin.q, twin.k, twin.v)
    assert_alike(pair[0], twin, lambda one: one(hidden()))


def test_without_gradients_nothing_is_sent_or_kept(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = reductions(monkeypatch)
    with torch.no_grad():
        pair[1](hidden())
    assert not sizes
    assert not pair[1].q.tp_fused._outputs


def test_gradients_of_gradients_are_refused(pair: Any) -> None:
    given = hidden()
    (grad,) = torch.autograd.grad(pair[1](given), given, create_graph=True)
    with pytest.raises(EngineError, match="differentiated again"):
        grad.sum().backward()
