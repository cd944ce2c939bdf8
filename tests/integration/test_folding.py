"""A few layers of each kind give the plan, and the cost, that all of them give."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))

import catalogue  # noqa: E402  # found by the line above
from tpinit.runtime.blank import build_blank  # noqa: E402  # needs torch
from tpinit.runtime.plan import plan_model  # noqa: E402  # the same
from tpinit.runtime.plan.cost import count_collectives  # noqa: E402  # the same
from tpinit.runtime.plan.examples import example_inputs  # noqa: E402  # the same
from tpinit.runtime.plan.folding import folded  # noqa: E402  # the same

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


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_folded_is_whole(name: str, tp: int) -> None:
    sample = catalogue.build(name, **MODELS[name])
    model = build_blank(lambda: type(sample)(sample.config)).model
    count = sum(1 for _ in model.modules())
    whole = plan_model(model, tp, 0)
    inputs = example_inputs(model, torch.device("cpu"))[0]
    every = count_collectives(model, whole, inputs, 14, 4)
    with folded(model) as folding:
        assert sum(1 for _ in model.modules()) < count
        plan = plan_model(model, tp, 0)
        few = count_collectives(model, plan, inputs, 14, 4)
    assert sum(1 for _ in model.modules()) == count
    found = folding.unfold(plan, model)
    assert found.parameters == whole.parameters
    assert set(found.layers) == set(whole.layers)
    assert set(found.blocks) == set(whole.blocks)
    unfolded = sorted((place, one.phase, one.elements) for one in few for place in folding.names(one.module))
    assert unfolded == sorted((one.module, one.phase, one.elements) for one in every)


def test_layers_that_share_a_parameter_are_left_alone() -> None:
    layers = [torch.nn.Linear(4, 4) for _ in range(6)]
    for layer in layers:
        layer.weight = layers[0].weight
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(layers)
    with folded(model) as folding:
        assert len(model.layers) == 6
        assert not folding.lists
