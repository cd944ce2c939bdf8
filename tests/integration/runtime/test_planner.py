"""Plans come from the data flow of a model and pass a dry run: what that finds, and what it refuses."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning import Cut, GradientRule, LayerKind, Plan, plan_model
from tpinit.runtime.planning.analysis.linears import find_experts, find_linears
from tpinit.runtime.planning.analysis.trace import trace_forward
from tpinit.runtime.planning.analysis.train_trace import dry_run_inputs, trace_training
from tpinit.runtime.planning.build import PlanningTask
from tpinit.runtime.planning.check.dry_run import check_shards
from tpinit.runtime.planning.check.fit import fit_region
from tpinit.runtime.planning.partition.experts import fit_experts
from tpinit.runtime.planning.partition.regions import BlockPatch, Region, ShardMismatch, candidate_regions
from tpinit.runtime.planning.partition.shard_maps import RegionSharding, even_shard_map

from families import catalogue


def records(plan: Plan) -> dict[str, Any]:
    return {one.name: one for one in plan.parameters}


class Odd(nn.Module):
    """A model whose names say nothing: attention with fused, interleaved heads, then a gated MLP, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = 6
        self.a, self.b = nn.Linear(12, 36), nn.Linear(12, 12)
        self.c, self.d = nn.Linear(12, 40), nn.Linear(20, 12)
        self.e, self.f = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = self.a(self.e(x)).view(*x.shape[:2], self.parts, 3, -1).permute(3, 0, 2, 1, 4)
        mixed = (both[0] @ both[1].transpose(-1, -2)).softmax(-1) @ both[2]
        x = x + self.b(mixed.transpose(1, 2).flatten(2))
        one, other = self.c(x).chunk(2, -1)
        return self.f(x + self.d(one.sigmoid() * other))


def test_a_model_without_telling_names_is_cut_by_what_it_computes() -> None:
    plan = plan_model(Odd(), 2, 0, example={"x": torch.randn(2, 5, 12)})
    found = records(plan)
    assert found["a.weight"].cut is Cut.COLUMN
    assert found["a.weight"].pieces_of(2, 1) == ((18, 18),)  # heads one by one, each with its q, k and v
    assert found["b.weight"].cut is Cut.ROW
    assert found["c.weight"].pieces_of(2, 1) == ((10, 10), (30, 10))  # two halves, each cut
    assert found["d.weight"].cut is Cut.ROW
    assert {name for name, one in found.items() if one.dim is None} == {
        "b.bias",
        "d.bias",
        "e.weight",
        "e.bias",
        "f.weight",
        "f.bias",
    }
    assert [(block.module, block.attributes) for block in plan.blocks] == [("", (("parts", (3, 3)),))]


def test_a_plan_that_mixes_features_is_refused_by_the_dry_run() -> None:
    """The norm between the two layers reads all features: no rank can do with its own."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm, self.down = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(self.norm(self.up(x)))

    with pytest.raises(PlanError, match=r"up, down: its forward raises|up, down: input of `down` on rank"):
        plan_model(Normed(), 2, 0, example={"x": torch.randn(2, 3, 8)})


class NormedInTraining(nn.Module):
    """Two layers that can be cut in evaluation mode; in training a norm between them reads all features."""

    def __init__(self, mode: bool, dropped: float = 0.0) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 8)
        self.mode, self.dropped = mode, dropped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.dropout(x, self.dropped, self.training)
        hidden = self.up(x)
        return self.down(self.norm(hidden) if self.training is self.mode else hidden)


@pytest.mark.parametrize("dropped", [0.0, 0.5])
def test_what_is_trained_is_what_is_planned(dropped: float) -> None:
    example = {"x": torch.randn(2, 3, 8)}
    for now in (True, False):
        with pytest.raises(PlanError, match=r"up, down: its forward raises|up, down: input of `down` on rank"):
            plan_model(NormedInTraining(True, dropped).train(now), 2, 0, example=example)
        plan = plan_model(NormedInTraining(False, dropped).train(now), 2, 0, example=example)
        assert records(plan)["up.weight"].dim == 0


class Drawing(NormedInTraining):
    """One that draws numbers in training that are others in every run, whatever is done about dropout."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + torch.randn_like(x) if self.training else x)


def test_a_model_that_draws_numbers_is_watched_where_it_draws_none() -> None:
    inputs = {"x": torch.randn(2, 3, 8)}
    for dropped in (0.0, 0.5):
        seen = trace_training(NormedInTraining(False, dropped), inputs)
        assert (seen.nondeterministic, seen.context.training, seen.context.has_dropout) == (False, True, dropped > 0)
        seen = trace_training(Drawing(False, dropped), inputs)
        assert (seen.nondeterministic, seen.context.training, seen.context.has_dropout) == (False, False, False)


class Skipped(nn.Module):
    """Two pairs of layers, each skipped in training where the number drawn is below nine tenths."""

    def __init__(self, draw: Callable[[], Any]) -> None:
        super().__init__()
        self.draw = draw
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.open, self.close = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for first, second in ((self.up, self.down), (self.open, self.close)):
            if not self.training or self.draw() >= 0.9:
                x = x + second(nn.functional.dropout(first(x), 0.1, self.training))
        return x


TENSOR_DRAWS = [
    lambda: torch.rand([]),
    lambda: torch.rand(1, generator=torch.Generator().manual_seed(1)),
    lambda: torch.rand_like(torch.ones(1)),
    lambda: torch.empty(1).uniform_(0, 1),
]
DRAWS = [
    lambda: random.random(),
    lambda: random.uniform(0, 1),
    lambda: np.random.rand(),
    lambda: np.random.rand(1).item(),
    lambda: np.random.random(),
    lambda: np.random.uniform(0, 1, size=(1,)),
]


@pytest.mark.parametrize("draw", TENSOR_DRAWS)
def test_own_code_that_reads_a_drawn_tensor_beside_its_layers_is_refused(draw: Callable[[], Any]) -> None:
    with pytest.raises(PlanError, match="the forward of Skipped reads values of a tensor in Python"):
        plan_model(Skipped(draw).train(), 2, 0, example={"x": torch.randn(2, 3, 8)})


@pytest.mark.parametrize("draw", DRAWS)
def test_what_chance_skips_is_watched_and_dropped_out_too(draw: Callable[[], Any]) -> None:
    model, example = Skipped(draw).train(), {"x": torch.randn(2, 3, 8)}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    plan = plan_model(model, 2, 0, example=example)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert {layer.module for layer in plan.layers if layer.draws_random} == {"up", "down", "open", "close"}
    assert torch.equal(states[0], after[0])
    assert states[1:] == after[1:]


def test_a_likely_plan_takes_two_traces_and_one_dry_run_for_each_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def runs(name: str, tp_size: int) -> int:
        model = catalogue.build(name)
        original, calls = type(model).forward, 0

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return original(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(type(model), "forward", forward)
            plan_model(model, tp_size, 0)
        return calls

    assert [runs("llama", tp_size) for tp_size in (2, 3)] == [4, 5]
    assert runs("opt", 2) > 4  # it must be told its number of heads, which is found by trying


def attention_of(name: str) -> tuple[PlanningTask, Region]:
    """Return the planning task of a model over two ranks, and the region of its first attention."""
    model = catalogue.build(name)
    inputs = dry_run_inputs(model, None)
    assert inputs is not None
    task = PlanningTask(model, inputs, trace_forward(model, inputs), find_linears(model), None, 2, ("lm_head",))
    regions = candidate_regions(task.linears, task.trace, task.head_names)
    return task, next(region for region in regions if region.is_attention)


def test_heads_folded_into_the_sequence_are_seen() -> None:
    """OPT views its features with a fixed number of heads: fewer features fold, silently, into more tokens."""
    task, region = attention_of("opt")
    sharding, patch = fit_region(task, region, {})
    assert patch.attributes == (("num_heads", (6, 6)),)
    check_shards(task, [(region, sharding, patch)])
    with pytest.raises(ShardMismatch, match=r"has shape|raises"):
        check_shards(task, [(region, sharding, BlockPatch())])


def test_a_cut_across_heads_is_seen() -> None:
    task, region = attention_of("gpt2")
    sharding, patch = fit_region(task, region, {})
    # A contiguous half of [q | k | v]: all of q and half of k, which is what a careless column cut takes.
    careless = RegionSharding(dict.fromkeys(region.columns, even_shard_map(144, 2)), sharding.row, sharding.heads)
    with pytest.raises(ShardMismatch):
        check_shards(task, [(region, careless, patch)])


@pytest.mark.parametrize(
    "name", ["llama_kv1", "gpt2", "mixtral", "gpt_oss", "dbrx", "deepseek_v2", "t5", "bloom", "qwen3"]
)
@pytest.mark.parametrize("tp_size", [2, 3])
def test_a_model_on_the_meta_device_has_the_same_plan(name: str, tp_size: int) -> None:
    model = catalogue.build(name)
    real = plan_model(model, tp_size, 0)
    away = copy.deepcopy(model)
    for module in away.modules():
        for key, one in module._parameters.items():
            if one is not None:
                module._parameters[key] = nn.Parameter(one.to("meta"), requires_grad=one.requires_grad)
    for name_of_alias, one in model.named_parameters(remove_duplicate=False):  # ties are ties of one object
        first = next(key for key, other in model.named_parameters() if other is one)
        if first != name_of_alias:
            owner, _, key = name_of_alias.rpartition(".")
            setattr(away.get_submodule(owner), key, away.get_parameter(first))
    assert plan_model(away, tp_size, 0) == real


def test_planning_changes_nothing_and_fires_no_hook() -> None:
    model = catalogue.build("gpt2").train()
    fired: list[object] = []
    model.transformer.h[0].mlp.register_forward_hook(lambda *_: fired.append(1))
    before = {name: one.clone() for name, one in model.state_dict().items()}
    numbers = {name: dict(vars(module)) for name, module in model.named_modules()}
    state = torch.get_rng_state()
    plan_model(model, 2, 0)
    assert fired == []
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    for name, module in model.named_modules():
        assert {key for key in vars(module) if not key.startswith("_")} == {
            key for key in numbers[name] if not key.startswith("_")
        }
        assert getattr(module, "num_heads", None) == numbers[name].get("num_heads")


def test_parameters_that_meet_cut_features_have_parts_of_their_gradient() -> None:
    found = records(plan_model(catalogue.build("qwen3"), 2, 0))
    assert found["model.layers.0.self_attn.q_norm.weight"].gradient_rule is GradientRule.PARTIAL
    assert found["model.layers.0.input_layernorm.weight"].gradient_rule is GradientRule.REPLICATED
    latent = records(plan_model(catalogue.build("deepseek_v2"), 2, 0))
    assert latent["model.layers.0.self_attn.kv_a_layernorm.weight"].gradient_rule is GradientRule.PARTIAL


def test_key_value_heads_are_shared_where_there_are_fewer_than_ranks() -> None:
    plan = plan_model(catalogue.build("llama_kv2"), 4, 0)
    key = records(plan)["model.layers.0.self_attn.k_proj.weight"]
    assert key.gradient_rule is GradientRule.PARTIAL
    assert [key.pieces_of(4, rank) for rank in range(4)] == [((0, 4),), ((0, 4),), ((4, 4),), ((4, 4),)]


def test_a_tied_embedding_is_cut_once_and_stays_tied() -> None:
    plan = plan_model(catalogue.build("llama_tied"), 2, 0)
    tied = [one for one in plan.parameters if len(one.names) > 1]
    assert [one.cut for one in tied] == [Cut.VOCABULARY]
    kinds = {layer.module: layer.kind for layer in plan.layers}
    assert kinds["model.embed_tokens"] is LayerKind.EMBEDDING
    assert kinds["lm_head"] is LayerKind.HEAD


def test_an_embedding_that_does_more_than_look_up_is_not_cut() -> None:
    """A norm of the rows does not commute with the sum over ranks; a scale (gemma) does."""
    model = catalogue.build_causal("inkling_text")
    assert "model.embed_tokens" not in {layer.module for layer in plan_model(model, 2, 0).layers}
    assert "model.embed_tokens" in {layer.module for layer in plan_model(catalogue.build("gemma"), 2, 0).layers}


def test_a_router_is_no_matrix_though_it_derives_from_one() -> None:
    model = catalogue.build_causal("llama4_text")
    routers = [name for name, module in model.named_modules() if type(module).__name__ == "Llama4Router"]
    assert routers
    assert not set(routers) & set(find_linears(model))
    assert find_linears(catalogue.build("falcon")), "what derives from a linear layer and is one, is"


def test_a_model_that_seeds_itself_is_refused() -> None:
    with pytest.raises(PlanError, match=r"torch\.seed\(\)"):
        plan_model(catalogue.build_causal("reformer").train(), 2, 0)


def test_experts_are_cut_inside() -> None:
    model = catalogue.build("mixtral")
    plan = plan_model(model, 2, 0)
    found = records(plan)
    (name, module), *_ = find_experts(model).items()
    width = module.down_proj.shape[2]
    assert found[f"{name}.gate_up_proj"].pieces_of(2, 1) == ((width // 2, width // 2), (width + width // 2, width // 2))
    assert found[f"{name}.down_proj"].dim == 2


def test_biases_of_experts_lie_as_the_columns_do_or_are_added_by_one_rank() -> None:
    model = catalogue.build("gpt_oss")
    plan = plan_model(model, 2, 0)
    found = records(plan)
    (name, _), *_ = find_experts(model).items()
    weight, bias = found[f"{name}.gate_up_proj"], found[f"{name}.gate_up_proj_bias"]
    assert (weight.dim, bias.dim) == (2, 1)
    assert weight.pieces_of(2, 1) == bias.pieces_of(2, 1) == ((96, 96),)  # gate and up in turn
    added = found[f"{name}.down_proj_bias"]
    assert (added.cut, added.gradient_rule) == (Cut.REPLICATED, GradientRule.PARTIAL)
    (block,) = (one for one in plan.blocks if one.module == name)
    assert block.first_rank_only == ("down_proj_bias",)


def test_experts_in_rows_are_cut_each_in_itself() -> None:
    plan = plan_model(catalogue.build("dbrx"), 2, 0)
    found = records(plan)
    weights = [found[f"transformer.blocks.0.ffn.experts.mlp.{name}"] for name in ("w1", "v1", "w2")]
    assert [one.cut for one in weights] == [Cut.COLUMN, Cut.COLUMN, Cut.ROW]
    for one in weights:
        assert one.pieces_of(2, 1) == ((12, 12), (36, 12), (60, 12), (84, 12))  # 4 experts of 24
    (block,) = (one for one in plan.blocks if one.module == "transformer.blocks.0.ffn.experts")
    assert ("ffn_hidden_size", (12, 12)) in block.attributes


class Experts(nn.Module):
    """Experts with biases and one more parameter, where `hidden` is twice the width: no bias tells by its shape."""

    def __init__(self, last: int = 0) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.randn(3, 8, 8)), nn.Parameter(torch.randn(3, 8, 4))
        self.first, self.second = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(3, 8))
        self.third = nn.Parameter(torch.randn(3, last)) if last else None

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        gate_up = torch.einsum("th,tkoh->tko", hidden, self.gate_up_proj[chosen]) + self.second[chosen]
        gate, up = gate_up.chunk(2, -1)
        out = torch.einsum("tko,tkho->tkh", gate.sigmoid() * up, self.down_proj[chosen]) + self.first[chosen]
        return (out * weights.unsqueeze(-1)).sum(1)


def test_what_a_bias_of_experts_is_for_is_found_by_running_them() -> None:
    found = fit_experts(Experts(), 2)
    assert found.first_rank_only == ("first",)
    second, gate_up = found.placements["second"], found.placements["gate_up_proj"]
    assert (second.dim, second.shard_map) == (1, gate_up.shard_map)


def test_experts_with_anything_else_stay_whole() -> None:
    with pytest.raises(ShardMismatch, match="its experts have other parameters too: third"):
        fit_experts(Experts(last=5), 2)
    with pytest.raises(ShardMismatch, match="4 features, fewer than 5 ranks"):
        fit_experts(Experts(), 5)
    strange = Experts(last=8)  # of the right shape, and never used as a bias
    strange.forward = lambda *args: Experts.forward(strange, *args) * strange.third.sum()  # type: ignore[method-assign,union-attr]  # a stand-in for a block that scales its sum
    with pytest.raises(ShardMismatch):
        fit_experts(strange, 2)


@pytest.mark.parametrize("name", ["llama_kv1", "gpt2", "mixtral", "gpt_oss"])
def test_a_plan_is_data(name: str) -> None:
    plan = plan_model(catalogue.build(name), 2, 1)
    page = plan.to_json()
    assert Plan.from_json(page) == plan
    assert page["parameters"][0]["local_shape"]
    with pytest.raises(PlanError, match="this is not a plan"):
        Plan.from_json({**page, "layers": [{"module": "x", "kind": "sideways"}]})
    with pytest.raises(PlanError, match="version"):
        Plan.from_json({**page, "version": 99})
