"""Models that something else has wrapped, and parameters that are no plain tensors, are refused with what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning import plan_model

from families import catalogue

DOWN = "model.layers.0.mlp.down_proj"


def set_down(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    def build(model: Any) -> Any:
        layer = model.get_submodule(DOWN)
        changed = change(layer.weight.detach())
        layer.weight = nn.Parameter(changed, requires_grad=changed.is_floating_point())
        return model

    return build


def compile_a_layer(model: Any) -> Any:
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    return model


def make_sparse(model: Any) -> Any:
    model.model.embed_tokens.sparse = True
    return model


def add(parameter: Callable[[], torch.Tensor]) -> Callable[[Any], Any]:
    def build(model: Any) -> Any:
        value = parameter()
        model.model.layers[0].extra = nn.Parameter(value, requires_grad=not value.is_inference())
        return model

    return build


def made_in_inference_mode() -> torch.Tensor:
    with torch.inference_mode():
        return torch.ones(3)


CASES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "data parallel": (nn.DataParallel, "wrapped in a DataParallel: initialize the model itself"),
    "compiled": (lambda model: torch.compile(model, backend="eager"), "OptimizedModule: it is compiled.*then compile"),
    "compiled layer": (compile_a_layer, "model.layers.0: it is compiled by torch.compile: initialize first"),
    "averaged": (AveragedModel, "wrapped in a AveragedModel"),
    "scripted": (lambda _: torch.jit.script(nn.Linear(2, 2)), "compiled by torch.jit"),
    "sparse gradient": (make_sparse, "model.embed_tokens: its gradient is sparse: set sparse=False"),
    "sparse": (add(lambda: torch.eye(3).to_sparse()), "layers.0.extra: its layout is torch.sparse_coo"),
    "complex": (add(lambda: torch.zeros(3, dtype=torch.complex64)), "extra: its dtype is torch.complex64"),
    "complex weight": (set_down(lambda weight: weight.to(torch.complex64)), f"{DOWN}.weight: its dtype is"),
    "integers": (set_down(lambda weight: weight.to(torch.int8)), f"{DOWN}.weight: .*int8, so the layer is quantized"),
    "8 bits": (set_down(lambda weight: weight.to(torch.float8_e4m3fn)), "float8_e4m3fn, so the layer is quantized"),
    "inference": (add(made_in_inference_mode), "made under torch.inference_mode"),
    "expanded": (add(lambda: torch.ones(1).expand(3)), "its elements share memory"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_can_not_be_planned_is_refused_with_what_to_do(case: str) -> None:
    model = catalogue.build("llama").train()
    plan_model(model, 2, 0)  # the control
    build, problem = CASES[case]
    with pytest.raises(PlanError, match=f"(?s){problem}"):
        plan_model(build(model), 2, 0)


def test_integers_in_a_module_that_is_never_sharded_are_legal() -> None:
    model = catalogue.build("llama").train()
    plain = plan_model(model, 2, 0)
    model.model.layers[0].register_parameter("steps", nn.Parameter(torch.zeros(2, dtype=torch.int32), False))
    assert plan_model(model, 2, 0).layers == plain.layers
