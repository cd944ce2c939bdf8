"""Plans that a user passes: as made, edited, from data or from a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tpinit.runtime import initialize
from tpinit.runtime.groups.digest import digest_model
from tpinit.runtime.planning import Plan, plan_model

from families import catalogue
from support.family_training import SGD, train_family
from support.refusals import error_of


def train_by_passed_plan(rank: int, name: str, form: str, file: str, edit: str = "") -> dict[str, Any]:
    """Train by a plan that was made before and is passed as a Plan, as plain data, or in a file."""
    world = dist.get_world_size()
    plan = plan_model(catalogue.build(name), world, 0)
    page = edited(plan.to_json(), edit)
    again: Any = page
    if form == "plan":
        again = replace(plan, tp_rank=world - 1)
    if form == "file":
        if rank == 0:
            Path(file).write_text(json.dumps(page), encoding="utf-8")
        dist.barrier()
        again = file
    result = train_family(rank, name, world, steps=3, initialize_with={"plan": again})
    return {**result, "same": Plan.from_json(page) == plan}


def initialize_by_request(
    rank: int, name: str, section: dict[str, Any] | None = None, edit: str = "", on_rank: int | None = None
) -> dict[str, Any]:
    """Initialise by a section, or by a plan that was edited on all ranks or on one, and return the error."""
    world = dist.get_world_size()
    model = catalogue.build(name)
    before = digest_model(model)
    page = plan_model(model, world, 0).to_json() if edit else None
    if page is not None and on_rank in (None, rank):
        page = edited(page, edit)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": world, **(section or {})},
    }
    result = error_of(lambda: initialize(model=model, config=config, plan=page))
    return {**result, "untouched": before == digest_model(model)}


def edited(page: dict[str, Any], edit: str) -> dict[str, Any]:
    """Return the plan of a llama (or, with biases of experts, of a gpt_oss), as plain data, with one edit."""
    page = json.loads(json.dumps(page))
    mlp = [f"model.layers.0.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
    match edit:
        case "":
            pass
        case "mlp whole":
            for name in mlp:
                _keep_whole(page, name)
        case "one column whole":
            _keep_whole(page, mlp[0])
        case "head whole":
            _keep_whole(page, "lm_head")
        case "uneven":
            for name in mlp:
                _parameter(page, f"{name}.weight")["slices"] = [[[0, 60]], [[60, 36]]]
        case "one column uneven":
            _parameter(page, f"{mlp[0]}.weight")["slices"] = [[[0, 60]], [[60, 36]]]
        case "a gap":
            _parameter(page, f"{mlp[0]}.weight")["slices"] = [[[0, 40]], [[60, 36]]]
        case "another shape":
            _parameter(page, "model.norm.weight")["shape"] = [47]
        case "another tp_size":
            page["tp_size"] = 4
        case "a sum of whole gradients":
            _parameter(page, "model.norm.weight")["gradient_rule"] = "partial"
        case "no layers":
            page["layers"] = []
        case "a bias added by all":
            for block in page["blocks"]:
                block["first_rank_only"] = []
        case "a bias that is not there":
            for block in page["blocks"]:
                block["first_rank_only"] = ["bias"]
        case _:
            raise AssertionError(edit)
    return page


def _parameter(page: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in page["parameters"] if name in one["names"])
    return found


def _keep_whole(page: dict[str, Any], module: str) -> None:
    whole = {
        "cut": "replicated",
        "dim": None,
        "gradient_rule": "replicated",
        "unit": 1,
        "fused_sizes": [],
        "slices": [],
    }
    _parameter(page, f"{module}.weight").update(whole)
    page["layers"] = [one for one in page["layers"] if one["module"] != module]
