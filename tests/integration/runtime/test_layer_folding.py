"""A few layers of each kind give the plan, and the cost, that all of them give."""

from __future__ import annotations

import contextlib
import copy
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tpinit.runtime.errors import PlanError
from tpinit.runtime.forecast.cost import count_collectives
from tpinit.runtime.loading.meta_init import build_meta_model
from tpinit.runtime.planning import plan_model, planner
from tpinit.runtime.planning.analysis import layer_folding
from tpinit.runtime.planning.analysis.example_inputs import example_inputs
from tpinit.runtime.planning.analysis.layer_folding import fold_layers
from tpinit.runtime.planning.analysis.linears import find_linears
from tpinit.runtime.planning.requests.request import LayerRequest, PlanRequest

from families import catalogue, causal
from families.deepening import deepened

KINDS = ["sliding_attention", "full_attention"]
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 7},
    "llama_uneven": {"num_hidden_layers": 5},
    "gemma2": {"num_hidden_layers": 8, "layer_types": KINDS * 4},
    "deepseek_v3": {"num_hidden_layers": 7, "first_k_dense_replace": 3},
    "mixtral": {"num_hidden_layers": 5},
    "gpt_oss": {"num_hidden_layers": 6, "layer_types": KINDS * 3},
    "gpt2": {"n_layer": 6},
    "bert": {"num_hidden_layers": 5},
    "t5": {"num_layers": 5, "num_decoder_layers": 4},
}


def _whole(model: Any, tp: int, monkeypatch: pytest.MonkeyPatch, **how: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(planner, "_plan_folded", lambda *_: None)
        return plan_model(model, tp, 0, **how)


def _same(one: Any, other: Any) -> None:
    assert one.parameters == other.parameters
    assert Counter(one.layers) == Counter(other.layers)
    assert Counter(one.blocks) == Counter(other.blocks)
    assert (one.notes, one.source) == (other.notes, other.source)


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_folded_is_whole(name: str, tp: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = catalogue.build(name, **MODELS[name])
    model = build_meta_model(lambda: type(sample)(sample.config)).model
    count = sum(1 for _ in model.modules())
    whole = _whole(model, tp, monkeypatch)
    inputs = example_inputs(model, torch.device("cpu"))[0]
    every = count_collectives(model, whole, inputs, 14, 4)
    with fold_layers(model) as folding:
        assert sum(1 for _ in model.modules()) < count
        plan = plan_model(model, tp, 0)
        few = count_collectives(model, plan, inputs, 14, 4)
        assert not folding.index_reads
    assert sum(1 for _ in model.modules()) == count
    found = folding.unfold(plan, model)
    _same(found, replace(whole, notes=found.notes))
    unfolded = sorted((place, one.phase, one.elements) for one in few for place in folding.full_names(one.module))
    assert unfolded == sorted((one.module, one.phase, one.elements) for one in every)
    _same(plan_model(model, tp, 0), whole)


def _both(model: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Plan both ways, hold one to the other, and say whether folding held."""
    held: list[bool] = []
    real = planner._plan_folded

    def spy(*args: Any) -> Any:
        found = real(*args)
        held.append(found is not None)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(planner, "_plan_folded", spy)
        one = _plan_or_words(lambda: plan_model(model, 2, 0))
    other = _plan_or_words(lambda: _whole(model, 2, monkeypatch))
    if isinstance(other, str):
        assert one == other
        return False
    _same(one, other)
    return held == [True]


def _plan_or_words(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except PlanError as error:
        return str(error)


@pytest.mark.parametrize("name", catalogue.FAMILIES)
def test_every_family_of_many_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _both(deepened(catalogue.build(name)), monkeypatch)


@pytest.mark.parametrize("name", causal.causal_models())
def test_every_causal_model_of_many_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in causal.UNBUILDABLE:
        pytest.skip(causal.UNBUILDABLE[name])
    try:
        model = deepened(causal.build_causal(name))
    except Exception as error:
        pytest.skip(f"can't be built with more layers: {error}")
    _both(model, monkeypatch)


def _stands(model: Any, told: Any = lambda _: None) -> Any:
    with fold_layers(model, told) as folding:
        return folding.represented.get("model.layers")


def _number(layer: Any) -> None:
    layer.self_attn.scaling *= 2


def _own_forward(layer: Any) -> None:
    layer.mlp.forward = types.MethodType(lambda self, x: type(self).forward(self, x), layer.mlp)


def _other_class(layer: Any) -> None:
    layer.mlp.__class__ = type("Other", (type(layer.mlp),), {})


def _hook(layer: Any) -> None:
    layer.mlp.register_forward_hook(lambda *_: None)


def _buffer(layer: Any) -> None:
    layer.register_buffer("table", torch.ones(3))


def _frozen(layer: Any) -> None:
    layer.mlp.up_proj.weight.requires_grad_(False)


def _shape(layer: Any) -> None:
    layer.mlp.up_proj = torch.nn.Linear(48, 100, bias=False)


def _flag(layer: Any) -> None:
    layer.self_attn.is_causal = 1


def _config(layer: Any) -> None:
    layer.self_attn.config = copy.copy(layer.self_attn.config)


def _more(layer: Any) -> None:
    layer.mlp.extra = torch.nn.Identity()


CHANGES = [_number, _buffer, _frozen, _shape, _flag, _config, _more]


@pytest.mark.parametrize("change", CHANGES, ids=[one.__name__ for one in CHANGES])
def test_a_layer_that_is_another_in_one_thing_stands_for_itself(change: Any) -> None:
    model = catalogue.build("llama", num_hidden_layers=6)
    assert _stands(model) == {0: (0,), 5: (1, 2, 3, 4, 5)}
    change(model.model.layers[2])
    assert _stands(model) == {0: (0,), 2: (2,), 5: (1, 3, 4, 5)}


@pytest.mark.parametrize("change", [_own_forward, _other_class, _hook])
def test_a_model_with_code_of_its_own_in_one_layer_is_not_folded(change: Any) -> None:
    model = catalogue.build("llama", num_hidden_layers=6)
    change(model.model.layers[2])
    assert _stands(model) is None


def test_what_is_said_of_one_layer_keeps_it_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = catalogue.build("llama", num_hidden_layers=6)
    named = "model.layers.2.mlp.down_proj"
    assert _stands(model, lambda name: name == named) == {0: (0,), 2: (2,), 5: (1, 3, 4, 5)}
    styles = {
        name: LayerRequest(column=True) for name in find_linears(model) if name.endswith(("gate_proj", "up_proj"))
    }
    styles |= {f"model.layers.{place}.mlp.down_proj": LayerRequest(row=True) for place in range(6) if place != 2}
    request = PlanRequest("a test", styles, from_user=True)
    plan = plan_model(model, 2, 0, request)
    _same(plan, _whole(model, 2, monkeypatch, request=request))
    cut = {layer.module for layer in plan.layers}
    assert named not in cut
    assert "model.layers.3.mlp.down_proj" in cut


class _Numbered(torch.nn.Module):
    """A layer of which every other one folds its features in pairs: it reads its place, and says so nowhere else."""

    def __init__(self, place: int, reads: bool) -> None:
        super().__init__()
        self.layer_idx, self.reads = place, reads
        self.up, self.down = torch.nn.Linear(8, 12), torch.nn.Linear(12, 8)

    def forward(self, x: Any) -> Any:
        inner = self.up(x)
        if self.reads and [False, True, False, False, False][self.layer_idx]:
            inner = inner - inner.mean(-1, keepdim=True)
        return x + self.down(inner)


class _Numbers(torch.nn.Module):
    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([_Numbered(place, reads) for place in range(5)])

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def known_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the classes of this file for known code, so that models of them are folded."""
    monkeypatch.setattr(layer_folding, "unknown_code", lambda *_: None)


@pytest.mark.usefixtures("known_here")
def test_a_layer_that_reads_its_place_is_not_spoken_for(monkeypatch: pytest.MonkeyPatch) -> None:
    example = {"x": torch.randn(2, 3, 8)}
    plain = _Numbers(False)
    assert _both_with(plain, example, monkeypatch)
    model = _Numbers(True)
    assert not _both_with(model, example, monkeypatch)
    cut = {layer.module for layer in plan_model(model, 2, 0, example=example).layers}
    assert "layers.1.up" not in cut, "the mean over all features is none over a part of them"
    assert "layers.2.up" in cut


def _both_with(model: Any, example: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    with monkeypatch.context() as patch:
        found: list[Any] = []
        real = planner._plan_folded
        patch.setattr(planner, "_plan_folded", lambda *args: found.append(real(*args)) or found[-1])
        plan = plan_model(model, 2, 0, example=example)
    _same(plan, _whole(model, 2, monkeypatch, example=example))
    return found[0] is not None


@pytest.mark.usefixtures("known_here")
def test_a_matrix_that_is_not_reached_lets_all_layers_be_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _Numbers(False)
    model.beside = torch.nn.Linear(8, 8)
    assert not _both_with(model, {"x": torch.randn(2, 3, 8)}, monkeypatch)


def test_a_model_is_as_before_whatever_happens() -> None:
    model = catalogue.build("llama", num_hidden_layers=5)
    before = [(name, id(one), sorted(vars(one))) for name, one in model.named_modules()]
    with pytest.raises(ZeroDivisionError), fold_layers(model):
        raise ZeroDivisionError
    assert before == [(name, id(one), sorted(vars(one))) for name, one in model.named_modules()]
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(5))


def test_planning_leaves_the_statistics_of_a_norm_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.BatchNorm1d(12), torch.nn.Linear(12, 8))
    before = [one.clone() for one in model.buffers()]
    with contextlib.suppress(PlanError):
        plan_model(model, 2, 0, example={"input": torch.randn(5, 8)})
    assert all(torch.equal(one, other) for one, other in zip(before, model.buffers(), strict=True))


def test_layers_that_share_a_parameter_are_left_alone() -> None:
    layers = [torch.nn.Linear(4, 4) for _ in range(6)]
    for layer in layers:
        layer.weight = layers[0].weight
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(layers)
    with fold_layers(model) as folding:
        assert len(model.layers) == 6
        assert not folding.represented
