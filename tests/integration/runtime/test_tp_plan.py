"""Every style that a tensor-parallel plan of the installed transformers names is one that the planner knows."""

import ast
import functools
import pathlib

import pytest
import transformers
from tpinit.runtime.planning.analysis.linears import find_experts, find_linears
from tpinit.runtime.planning.requests.request import LayerRequest
from tpinit.runtime.planning.requests.tp_plan import IGNORED_STYLES, STYLES, request_from_tp_plan

from families import catalogue

MODELS = pathlib.Path(transformers.__file__).parent / "models"


@functools.cache
def plans():
    """Every dict that is assigned to something called tp_plan in transformers' models: file, then pattern to style."""
    found = []
    for path in sorted(MODELS.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "tp_plan" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
                continue
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if "tp_plan" in getattr(target, "id", getattr(target, "attr", "")):
                found += [(path.name, one) for one in dicts(node.value)]
    return found


def dicts(value):
    for node in ast.walk(value):
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            yield {ast.unparse(key) if key else "**": one.value for key, one in pairs if isinstance(one, ast.Constant)}
        elif isinstance(node, ast.DictComp) and isinstance(node.value, ast.Constant):
            yield {ast.unparse(node.key): node.value.value}


def test_there_are_plans_to_look_at():
    assert len(plans()) > 200
    assert {"colwise", "rowwise", "moe_tp_experts", "local_params"} <= {
        one for _, plan in plans() for one in plan.values()
    }


def test_every_style_that_a_plan_names_is_known():
    assert {one for _, plan in plans() for one in plan.values()} <= STYLES.keys() | IGNORED_STYLES.keys()


def test_every_style_that_transformers_can_follow_is_known():
    from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES

    expert_parallel = {"ep_dispatch_experts", "grouped_gemm", "ep_router"}
    styles = {one for one in ALL_PARALLEL_STYLES.keys() if one not in expert_parallel}  # noqa: SIM118, no mapping
    assert "colwise" in styles
    assert styles <= STYLES.keys() | IGNORED_STYLES.keys()


def test_tensors_of_experts_are_never_cut_without_a_word_on_their_block():
    for file, plan in plans():
        packed = {key.rpartition(".")[0] for key in plan if key.endswith((".experts.gate_up_proj'",))}
        for block in packed:
            assert plan.get(f"{block}'") == "moe_tp_experts", file


@pytest.mark.parametrize("name", ["llama", "olmo2", "mixtral", "deepseek_v2", "t5"])
def test_wishes_of_real_models(name):
    model = catalogue.build(name)
    request = request_from_tp_plan(model, [*find_linears(model), *find_experts(model)])
    if name == "t5":
        assert request is None
        return
    assert not request.unknown_styles
    assert request.layers["lm_head"] == LayerRequest(column=True, standalone=True)
    block = "model.layers.1."
    wanted = {
        "llama": {"self_attn.q_proj": LayerRequest(column=True), "mlp.down_proj": LayerRequest(row=True)},
        "olmo2": {
            "self_attn.q_proj": LayerRequest(column=True, standalone=True),
            "self_attn.o_proj": LayerRequest(row=True, standalone=True),
        },
        "mixtral": {"mlp.experts": LayerRequest(experts=True)},
        "deepseek_v2": {"self_attn.kv_b_proj": LayerRequest(column=True)},
    }[name]
    for layer, style in wanted.items():
        assert request.layers[block + layer] == style
    assert block + "self_attn.kv_a_proj_with_mqa" not in request.layers
