"""A plan that is passed back: read from anything that holds one, and checked against the model."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning import check_plan, plan_model, read_plan


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.width = 10
        self.up, self.gate, self.down = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, hidden):
        return hidden + self.down(torch.relu(self.gate(hidden)) * self.up(hidden))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.mlps = nn.ModuleList([Mlp(), Mlp()])
        self.head = nn.Linear(6, 9, bias=False)

    def forward(self, ids):
        hidden = self.embed(ids)
        for mlp in self.mlps:
            hidden = mlp(hidden)
        return self.head(hidden)


EXAMPLE = {"ids": torch.arange(6).reshape(2, 3)}


def planned():
    model = Model()
    return model, plan_model(model, 2, 0, example=EXAMPLE)


def parameter(page, name):
    return next(one for one in page["parameters"] if name in one["names"])


def keep_whole(page, *modules):
    whole = {
        "cut": "replicated",
        "dim": None,
        "gradient_rule": "replicated",
        "unit": 1,
        "fused_sizes": [],
        "slices": [],
    }
    for module in modules:
        for kind in ("weight", "bias"):
            parameter(page, f"{module}.{kind}").update(whole)
    page["layers"] = [one for one in page["layers"] if one["module"] not in modules]


def test_a_plan_is_read_from_a_plan_a_mapping_or_a_file(tmp_path):
    model, plan = planned()
    assert {layer.module for layer in plan.layers} == {
        f"mlps.{i}.{name}" for i in (0, 1) for name in ("up", "gate", "down")
    }
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan.to_json()), encoding="utf-8")
    for given in (plan, replace(plan, tp_rank=1), plan.to_json(), file, str(file)):
        assert check_plan(read_plan(given), model, 2, EXAMPLE) == plan


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "can't be read: No such file"),
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "this is not a plan: KeyError: 'version'"),
        ('{"version": 9}', "format version 9; this release reads version 2 only"),
        ('{"version": 1}', "format version 1; .* Plan again with this release"),
    ],
)
def test_a_file_that_holds_no_plan_is_refused(tmp_path, text, words):
    file = tmp_path / "plan.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError, match=words):
        read_plan(file)


def test_what_is_no_plan_at_all_is_refused():
    with pytest.raises(PlanError, match="plan has type int: give a Plan"):
        read_plan(3)


def test_edits_that_are_sound_pass():
    model, plan = planned()
    page = plan.to_json()
    keep_whole(page, "mlps.0.up", "mlps.0.gate", "mlps.0.down")
    for name, place in (("up.weight", 0), ("up.bias", 0), ("gate.weight", 0), ("gate.bias", 0), ("down.weight", 1)):
        assert parameter(page, f"mlps.1.{name}")["dim"] == place
        parameter(page, f"mlps.1.{name}")["slices"] = [[[0, 3]], [[3, 7]]]
    found = check_plan(read_plan(page), model, 2, EXAMPLE)
    assert sum(one.dim is not None for one in found.parameters) == 5
    assert found.parameters[-3].pieces_of(2, 1) == ((3, 7),)
    assert replace(found, tp_rank=1).parameters[-3].local_shape(2, 1) == (6, 7)


def edit(page, name, **more):
    parameter(page, name).update(more)


def layer(page, name, **more):
    next(one for one in page["layers"] if one["module"] == name).update(more)


EDITS = {
    "no such parameter": (
        lambda p: edit(p, "mlps.0.up.weight", names=["mlps.0.upp.weight"]),
        "did you mean mlps.0.up.weight",
    ),
    "a parameter less": (lambda p: p["parameters"].pop(), "the plan has no record of head.weight"),
    "one twice": (lambda p: p["parameters"].append(p["parameters"][0]), "embed.weight has two records"),
    "tied": (
        lambda p: edit(p, "embed.weight", names=["embed.weight", "head.weight"]),
        "its tied names are embed.weight, not",
    ),
    "another shape": (lambda p: edit(p, "embed.weight", shape=[6, 9]), r"its shape is \[9, 6\], not \[6, 9\]"),
    "a dim that is none": (lambda p: edit(p, "mlps.0.up.weight", dim=2), "along dim 2"),
    "cut without a dim": (lambda p: edit(p, "mlps.0.up.weight", dim=None), "its cut is column, and it has no dim"),
    "whole with a dim": (lambda p: edit(p, "embed.weight", dim=0), "cut replicated along dim 0"),
    "out of range": (lambda p: edit(p, "mlps.0.up.weight", slices=[[[0, 5]], [[5, 6]]]), "would hold 5:11 of 0:10"),
    "a gap": (lambda p: edit(p, "mlps.0.up.weight", slices=[[[0, 4]], [[5, 5]]]), "no rank holds 4:5"),
    "nothing for a rank": (lambda p: edit(p, "mlps.0.up.weight", slices=[[[0, 10]], []]), "rank 1 would hold nothing"),
    "three ranks": (lambda p: edit(p, "mlps.0.up.weight", slices=[[[0, 5]]] * 3), "one list for each of 2 ranks"),
    "no pairs": (lambda p: edit(p, "mlps.0.up.weight", slices=[[0, 5], [5, 5]]), "one list for each of 2 ranks"),
    "units that do not fit": (lambda p: edit(p, "mlps.0.up.weight", unit=3), r"fused_sizes \[10\] in units of 3"),
    "blocks that do not fit": (
        lambda p: edit(p, "mlps.0.up.weight", fused_sizes=[4, 4]),
        r"fused_sizes \[4, 4\] in units of 1",
    ),
    "another tp_size": (lambda p: p.update(tp_size=3), "for a TP size of 3, and 2 was decided"),
    "no such module": (lambda p: layer(p, "mlps.0.up", module="mlps.0.upp"), "no such module; did you mean mlps.0.up"),
    "not that kind": (lambda p: layer(p, "mlps.0.up", kind="embedding"), "a Linear can't be of kind embedding"),
    "no such kind": (lambda p: layer(p, "mlps.0.up", kind="colum"), "'colum' is not a valid LayerKind"),
    "no such field": (lambda p: layer(p, "mlps.0.up", kinds="row"), "unexpected keyword argument 'kinds'"),
    "a column that leaves out the all-reduce of its input's gradient": (
        lambda p: layer(p, "mlps.0.up", reduce_input_grad=False),
        "its reduce_input_grad is False, and must be True",
    ),
    "a row that is whole": (lambda p: keep_whole(p, "mlps.0.down"), "all of the layers that must be sharded together"),
    "one column that is whole": (
        lambda p: keep_whole(p, "mlps.0.gate"),
        "all of the layers that must be sharded together",
    ),
    "a layer without its weight": (
        lambda p: edit(p, "mlps.0.up.weight", cut="replicated", dim=None, gradient_rule="replicated"),
        "has layers whose weights are replicated",
    ),
    "a bias that is whole": (
        lambda p: edit(p, "mlps.0.up.bias", cut="replicated", dim=None, gradient_rule="replicated"),
        "mlps.0.up.bias: its cut is replicated, and must be column",
    ),
    "another sum": (
        lambda p: edit(p, "embed.weight", gradient_rule="partial"),
        "its gradient_rule is partial, and must be replicated",
    ),
    "another part": (
        lambda p: edit(p, "mlps.0.up.weight", slices=[[[5, 5]], [[0, 5]]]),
        r"fails its dry run: input of `mlps\.0\.down` on rank \d differs .* \(max error",
    ),
    "a block that is told too much": (
        lambda p: p["blocks"].append({"module": "mlps.0", "attributes": [["training", [0, 0]]]}),
        "it has no integer attribute training",
    ),
    "a block that is told of a module that is not there": (
        lambda p: p["blocks"].append({"module": "mlps.0", "head_outputs": ["bias"]}),
        "it has no module bias",
    ),
    "a block that is not there": (
        lambda p: p["blocks"].append({"module": "nowhere"}),
        "block nowhere: the model has no",
    ),
    "numbers of three ranks": (
        lambda p: p["blocks"].append({"module": "mlps.0", "attributes": [["width", [5, 5, 0]]]}),
        "its attribute width needs 2 integers",
    ),
}


@pytest.mark.parametrize("case", EDITS)
def test_edits_that_are_not_are_refused_and_change_nothing(case):
    change, words = EDITS[case]
    model, plan = planned()
    before = copy.deepcopy(model.state_dict())
    page = json.loads(json.dumps(plan.to_json()))
    change(page)
    with pytest.raises(PlanError, match=words):
        check_plan(read_plan(page), model, 2, EXAMPLE)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert all(type(one) in (Model, Mlp, nn.Linear, nn.Embedding, nn.ModuleList) for one in model.modules())


def test_a_plan_of_a_model_whose_inputs_are_unknown_needs_an_example():
    model, plan = planned()
    with pytest.raises(PlanError, match="give a small batch of keyword arguments as `example`"):
        check_plan(plan, model, 2)
