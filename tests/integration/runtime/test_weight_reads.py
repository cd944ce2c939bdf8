"""A weight that a forward reads without calling its module is not sharded, or the plan is refused."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning import Plan, check_plan, plan_model
from tpinit.runtime.planning.analysis.linears import find_linears

from families import catalogue


def sharded(plan: Plan) -> set[str]:
    return {name for record in plan.parameters if record.dim is not None for name in record.names}


def on_meta(model: Any) -> Any:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.to("meta"))
    return model


class FusedLoss(nn.Module):
    """A causal language model whose loss multiplies by the head's weight; without labels it calls the head."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        hidden = self.inner.model(input_ids=input_ids)[0]
        if labels is None:
            return self.inner.lm_head(hidden)
        return functional.cross_entropy((hidden @ self.inner.lm_head.weight.t()).flatten(0, 1), labels.flatten())


@pytest.mark.parametrize("meta", [False, True])
def test_a_head_that_the_loss_reads_stays_whole_and_the_rest_is_sharded(meta: bool) -> None:
    inner = catalogue.build("llama")
    control = sharded(plan_model(inner, 2, 0))
    assert "lm_head.weight" in control
    model = FusedLoss(on_meta(inner) if meta else inner).train()
    plan = plan_model(model, 2, 0)
    assert sharded(plan) == {f"inner.{name}" for name in control} - {"inner.lm_head.weight"}
    (record,) = [record for record in plan.parameters if record.name == "inner.lm_head.weight"]
    assert (
        record.reason == "the forward of FusedLoss reads the values of inner.lm_head.weight without calling its module"
    )


READS = {
    "product": lambda self, x: functional.linear(x, self.up_proj.weight),
    "view": lambda self, x: x @ self.up_proj.weight.T,
    "data": lambda self, x: x @ self.up_proj.weight.data.t(),
    "parameters": lambda self, x: x @ dict(self.named_parameters())["up_proj.weight"].t(),
    "norm": lambda self, x: self.up_proj(x) / self.up_proj.weight.float().norm(),
    "item": lambda self, x: self.up_proj(x) * float(self.up_proj.weight.detach().sum()),
}


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("read", READS)
def test_a_weight_that_a_forward_reads_itself_is_not_sharded(read: str, meta: bool) -> None:
    model = catalogue.build("llama").train()
    for layer in model.model.layers:

        def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * READS[read](self, x))

        layer.mlp.forward = types.MethodType(forward, layer.mlp)
    plan = plan_model(on_meta(model) if meta else model, 2, 0)
    assert not [name for name in sharded(plan) if ".mlp." in name]
    assert [name for name in sharded(plan) if "self_attn" in name]


def test_an_embedding_that_another_module_reads_stays_whole() -> None:
    model = catalogue.build("llama").train()
    assert "model.embed_tokens.weight" in sharded(plan_model(model, 2, 0))
    norm = model.model.norm
    norm.forward = types.MethodType(
        lambda self, x: functional.linear(
            functional.linear(x, model.model.embed_tokens.weight), model.lm_head.weight.t()
        ),
        norm,
    )
    plan = plan_model(model, 2, 0)
    assert not {"model.embed_tokens.weight", "lm_head.weight"} & sharded(plan)
    assert "model.layers.0.mlp.down_proj.weight" in sharded(plan)


def test_metadata_of_a_weight_may_be_read() -> None:
    model = catalogue.build("llama").train()
    plain = plan_model(model, 2, 0)
    up = model.model.layers[0].mlp.up_proj

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        assert x.to(up.weight.dtype).shape[-1] == up.weight.shape[1]
        assert up.weight.device == x.device
        return type(self).forward(self, x)

    model.model.layers[0].mlp.forward = types.MethodType(forward, model.model.layers[0].mlp)
    assert sharded(plan_model(model, 2, 0)) == sharded(plain)


def test_a_plan_of_the_user_that_shards_a_weight_that_is_read_is_refused() -> None:
    inner = catalogue.build("llama")
    model = FusedLoss(inner).train()
    forward = FusedLoss.forward
    model.forward = types.MethodType(lambda self, input_ids: forward(self, input_ids), model)
    plan = plan_model(model, 2, 0)  # a forward without labels shards the head
    assert "inner.lm_head.weight" in sharded(plan)
    assert check_plan(plan, model, 2) == plan
    del model.forward
    with pytest.raises(PlanError, match=r"inner\.lm_head"):
        check_plan(plan, model, 2)


class Written(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input @ self.weight.T + (0 if self.bias is None else self.bias)


class Clipped(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).clamp(-50, 50)


class InTraining(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output = super().forward(input)
        return output.softmax(-1) if self.training else output


class ByDimensions(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output = super().forward(input)
        return output if input.dim() == 3 else output * 2


class Adapted(nn.Linear):
    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, bias)
        self.extra = nn.Parameter(torch.zeros(outputs, inputs))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + functional.linear(input, self.extra)


class Counting(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(input)


@pytest.mark.parametrize("kind", [Clipped, InTraining, ByDimensions, Adapted, Counting])
@pytest.mark.parametrize("bias", [False, True])
def test_a_subclass_is_a_linear_layer_if_it_runs_what_a_linear_layer_runs(kind: Any, bias: bool) -> None:
    model = nn.ModuleDict({"other": kind(4, 6, bias), "written": Written(4, 6, bias), "plain": nn.Linear(4, 6, bias)})
    keys = {name: set(vars(module)) for name, module in model.named_modules()}
    assert list(find_linears(model)) == ["written", "plain"]
    assert keys == {name: set(vars(module)) for name, module in model.named_modules()}
