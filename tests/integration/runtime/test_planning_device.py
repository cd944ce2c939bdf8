"""A model whose attention needs a GPU is planned on the device where it will train, before it is moved there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning import make_plan
from tpinit.runtime.planning.analysis.off_meta import activation_device, on_device
from tpinit.runtime.planning.analysis.train_trace import dry_run_inputs

from families import catalogue
from support.tiny_models import build

GPU = torch.device("cuda", 0)


class NeedsGpu(nn.Module):
    """Attention of a model that refuses the CPU, as FlashAttention does: `on_gpu` says that the run is on a GPU."""

    on_gpu = False

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))
        self.heads, self.scale = 4, nn.LayerNorm(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not NeedsGpu.on_gpu:
            raise RuntimeError("FlashAttention only supports CUDA tensors")
        x = self.scale(x)
        q, k, v = (one(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for one in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.o(mixed.transpose(1, 2).flatten(2))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Let what runs on GPU 0 run on the CPU, and say where it was to run."""
    used = []

    @contextmanager
    def on_fake(model: nn.Module, device: torch.device) -> Iterator[None]:
        used.append(device)
        with on_device(model, torch.device("cpu")):
            NeedsGpu.on_gpu = True
            try:
                yield
            finally:
                NeedsGpu.on_gpu = False

    module = sys.modules["tpinit.runtime.planning.make_plan"]
    monkeypatch.setattr(module, "on_device", on_fake)
    monkeypatch.setattr(module, "_moved", lambda value, device: value)
    return used


def test_attention_that_needs_a_gpu_is_planned_there(gpu: list[torch.device]) -> None:
    model = NeedsGpu()
    example = {"x": torch.randn(2, 5, 12)}
    before = {name: (one, id(one.data)) for name, one in model.named_parameters()}
    plan = make_plan(model, 2, {}, example=example, device=GPU)
    assert gpu == [GPU]
    assert {one.name: one.dim for one in plan.parameters if one.dim is not None}.keys() >= {"q.weight", "o.weight"}
    assert all(before[name][0] is one and not one.is_meta for name, one in model.named_parameters())
    NeedsGpu.on_gpu = True
    try:
        assert make_plan(model, 2, {}, example=example).parameters == plan.parameters  # the plan of a model on a GPU
    finally:
        NeedsGpu.on_gpu = False


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_without_a_gpu_the_error_says_that_the_kernels_need_one(device: Any) -> None:
    with pytest.raises(PlanError, match=r"only supports CUDA.*need a GPU.*attn_implementation") as caught:
        make_plan(NeedsGpu(), 2, {}, example={"x": torch.randn(2, 5, 12)}, device=device)
    assert "example" not in str(caught.value)


def test_a_forward_that_fails_for_another_reason_asks_for_inputs() -> None:
    with pytest.raises(PlanError, match="pass keyword arguments that it takes as `example`") as caught:
        make_plan(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)), 2, {}, example={"y": torch.ones(2, 3)})
    assert "GPU" not in str(caught.value)


def test_a_model_that_runs_where_it_is_is_planned_once(gpu: list[torch.device]) -> None:
    make_plan(build(), 2, {}, device=GPU)
    assert gpu == []


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma3", "bloom"])
def test_the_plan_on_another_device_is_that_of_the_model_itself(family: str) -> None:
    model = catalogue.build_causal(family)
    entries = {name: id(one) for name, one in [*model.named_parameters(), *model.named_buffers()]}
    expected = make_plan(model, 2, {})
    with on_device(model, torch.device("cpu")):
        assert all(parameter.is_meta for parameter in model.parameters())
        found = make_plan(model, 2, {})
    assert found.parameters == expected.parameters
    assert found.layers == expected.layers
    assert {name: id(one) for name, one in [*model.named_parameters(), *model.named_buffers()]} == entries


def test_activations_and_inputs_are_on_the_device_and_the_model_is_put_back_after_an_error() -> None:
    model = build()
    ties = len({id(one) for one in model.parameters()})

    def fail() -> None:
        with on_device(model, torch.device("meta")):  # in place of a GPU
            assert activation_device() == torch.device("meta")
            inputs = dry_run_inputs(model, None)
            assert inputs is not None
            assert inputs["input_ids"].device == torch.device("meta")
            raise KeyError("anything")

    with pytest.raises(KeyError):
        fail()
    assert activation_device() == torch.device("cpu")
    assert not any(one.is_meta for one in model.parameters())
    assert len({id(one) for one in model.parameters()}) == ties
