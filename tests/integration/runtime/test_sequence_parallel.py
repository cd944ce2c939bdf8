"""Where tokens can be cut between layers is found from what a model computes; what needs all of them gets them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import tpinit.runtime
from torch import nn
from tpinit.reference.errors import TpinitError
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning import Plan, plan_model
from tpinit.runtime.planning.analysis.layer_folding import fold_layers
from tpinit.runtime.planning.schema import GradientRule

from families import catalogue

REFUSED = ("opt", "opt_projected", "llama4")
FAMILIES = [name for name in catalogue.FAMILIES if name not in REFUSED]
WHOLE = {
    "qwen2_moe": "mlp",
    "qwen3_moe": "mlp",
    "mixtral": "mlp",
    "olmo2": "self_attn",
    "stablelm_qk_layernorm": "self_attn",
    "deepseek_v2": "self_attn",
}


def planned(model: nn.Module, tp_size: int = 2, **more: Any) -> Plan:
    return plan_model(model, tp_size, 0, sequence_parallel=True, **more)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_scatters_and_every_norm_has_a_part_of_its_gradient(name: str) -> None:
    plan = planned(catalogue.build(name))
    assert plan.sequences
    for sequence in plan.sequences:
        inside = f"{sequence.stack}."
        whole = tuple(f"{one}." for one in sequence.replicated_modules)
        rows = [one for one in plan.layers if one.kind.value == "row" and one.module.startswith(inside)]
        assert rows or sequence.replicated_modules
        for one in rows:
            assert one.scatter_output is not one.module.startswith(whole)
        for record in plan.parameters:
            if record.name.startswith(inside) and record.dim is None and "norm" in record.name.split(".")[-2]:
                kept = record.name.startswith(whole)
                assert kept or record.gradient_rule is GradientRule.PARTIAL, record.name


@pytest.mark.parametrize("name", WHOLE)
def test_what_needs_all_tokens_gets_them(name: str) -> None:
    (sequence,) = planned(catalogue.build(name)).sequences
    assert any(one.endswith(f".{WHOLE[name]}") for one in sequence.replicated_modules)


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_fold_the_tokens_of_a_batch_are_refused(name: str) -> None:
    with pytest.raises(PlanError, match=r"has no hidden states \[batch, tokens, features\] as input or output"):
        planned(catalogue.build(name))


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "whisper", "mixtral"])
def test_a_folded_plan_unfolds_to_the_whole_one(name: str) -> None:
    model = catalogue.build(name)
    whole = planned(model)
    with fold_layers(model) as folding:
        short = planned(model)
    again = folding.unfold(short, model)
    assert set(again.layers) == set(whole.layers)
    assert again.parameters == whole.parameters
    for one, other in zip(again.sequences, whole.sequences, strict=True):
        assert (one.stack, one.draws_random) == (other.stack, other.draws_random)
        for what in ("gather_inputs", "replicated_modules", "column_readers"):
            assert set(getattr(one, what)) == set(getattr(other, what))


def test_without_the_keyword_nothing_of_it_is_in_the_plan() -> None:
    plan = plan_model(catalogue.build("llama"), 2, 0)
    assert not plan.sequences
    assert not any(one.scatter_output for one in plan.layers)


def test_a_plan_is_the_same_after_json() -> None:
    plan = planned(catalogue.build("bloom"))
    assert Plan.from_json(plan.to_json()) == plan


# --- models that only seem to treat each token by itself ---------------------------------------------------


class Layer(nn.Module):
    """A gated block after a norm, and whatever `between` does with the hidden states."""

    def __init__(self, between: Any = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.between = between

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.mlp(self.norm(hidden))
        return hidden if self.between is None else self.between(hidden)


class Stack(nn.Module):
    def __init__(self, *layers: nn.Module, twice: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.twice = twice

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in (*self.layers, *(self.layers if self.twice else ())):
            hidden = layer(hidden)
        return hidden


EXAMPLE = {"hidden": torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))}


def test_layers_of_ones_own_are_cut_where_each_token_is_treated_by_itself() -> None:
    (sequence,) = planned(Stack(Layer(), Layer()), example=EXAMPLE).sequences
    assert sequence.stack == "layers"


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (lambda hidden: hidden - hidden.mean(dim=1, keepdim=True), r"differs from the unsharded run \(max error"),
        (lambda hidden: hidden.flip(1), r"differs from the unsharded run \(max error"),
        (lambda hidden: hidden.cumsum(1), r"differs from the unsharded run \(max error"),
        (
            lambda hidden: torch.cat([hidden[:, :1], hidden[:, 1:] * 2], dim=1),
            r"differs from the unsharded run \(max error",
        ),
        (lambda hidden: hidden + torch.arange(6.0)[:, None], "raises RuntimeError"),
    ],
)
def test_what_mixes_tokens_or_counts_them_is_refused(between: Any, why: str) -> None:
    with pytest.raises(PlanError, match=why):
        planned(Stack(Layer(), Layer(between), Layer()), example=EXAMPLE)


def test_layers_that_run_twice_are_refused() -> None:
    with pytest.raises(PlanError, match=r"more than once|more often than"):
        planned(Stack(Layer(), Layer(), twice=True), example=EXAMPLE)


def test_a_reader_of_the_gathered_tokens_that_is_not_cut_is_refused() -> None:
    class Beside(Layer):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.ModuleDict({"up": nn.Linear(16, 32), "down": nn.Linear(32, 16), "gate": nn.Linear(16, 1)})
            self.mlp.forward = self.block  # type: ignore[method-assign]  # a block of which one matrix stays whole

        def block(self, normed: torch.Tensor) -> torch.Tensor:
            gate: torch.Tensor = self.mlp["gate"](normed)
            out: torch.Tensor = self.mlp["down"](torch.relu(self.mlp["up"](normed)))
            return out * gate.sigmoid()

    (sequence,) = planned(Stack(Beside(), Beside()), example=EXAMPLE).sequences
    # Gathered in front of the block the gate would read all tokens: gathered in front of the cut matrix it does not.
    assert sequence.gather_inputs == ("layers.0.mlp.up", "layers.1.mlp.up")


def test_a_parameter_inside_and_outside_is_refused() -> None:
    class Tied(Stack):
        def __init__(self) -> None:
            super().__init__(Layer(), Layer())
            self.norm = nn.LayerNorm(16)
            self.norm.weight = self.layers[0].norm.weight

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.norm(super().forward(hidden))

    with pytest.raises(PlanError, match="used both inside and outside of layers"):
        planned(Tied(), example=EXAMPLE)


def test_dropout_where_all_tokens_are_needed_is_refused() -> None:
    with pytest.raises(PlanError, match="draws random numbers, which would differ between ranks"):
        planned(catalogue.build("olmo2", attention_dropout=0.1))


def test_planning_changes_nothing() -> None:
    model = catalogue.build("gpt2", resid_pdrop=0.1)
    before = copy.deepcopy(model.state_dict())
    hooks = sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules())
    plan = planned(model)
    assert plan.sequences[0].draws_random
    assert not any(one.draws_random for one in plan.layers)
    assert hooks == sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules())
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


@pytest.mark.parametrize("start", ["initialize", "from_config", "from_pretrained"])
def test_the_keyword_is_true_or_false(start: str, tmp_path: Path) -> None:
    first = {"initialize": {"model": Stack(Layer())}, "from_config": {"model_config": Stack, "seed": 0}}
    given: dict[str, Any] = first.get(start, {"directory": tmp_path})
    with pytest.raises(TpinitError, match='sequence_parallel is "yes", and must be True or False'):
        getattr(tpinit.runtime, start)(**given, sequence_parallel="yes")
