"""The optimizer and scheduler sections: what is malformed is named by its path, everything at once."""

from __future__ import annotations

import re
from typing import Any

import pytest
from torch import optim
from torch.optim import lr_scheduler
from tpinit.reference.errors import ConfigError
from tpinit.runtime.errors import UnsupportedError
from tpinit.runtime.settings import ComponentSettings, read_settings
from tpinit.runtime.settings.component_types import REFUSED_TYPES, component_types


def test_a_type_is_read_in_any_case_with_its_parameters() -> None:
    config = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95]}}}
    assert read_settings(config, 1, None).optimizer == ComponentSettings("adamw", {"lr": 1e-3, "betas": [0.9, 0.95]})
    assert read_settings({}, 1, None).optimizer is None


@pytest.mark.parametrize(
    ("section", "path", "words"),
    [
        ("Adam", "optimizer", "an object with type and params"),
        ({"type": "Adam", "lr": 1}, "optimizer.lr", "not known"),
        ({"type": "Lamb"}, "optimizer.type", "Adam, AdamW, SGD"),
        ({"type": "SGD", "params": [1]}, "optimizer.params", "must be an object"),
        ({"type": "SGD", "params": {"betas": [0.9, 0.9]}}, "optimizer.params.betas", "no such parameter"),
        ({"type": "Adam", "params": {"betas": [0.9]}}, "optimizer.params.betas", "two numbers"),
        ({"type": "Adam", "params": {"amsgrad": 1}}, "optimizer.params.amsgrad", "true or false"),
        ({"type": "Adam", "params": {"lr": "auto"}}, "optimizer.params.lr", "a number"),
        ({"type": "Adam", "params": {"lr": float("nan")}}, "optimizer.params.lr", "a number"),
    ],
)
def test_a_malformed_section_is_named_by_its_path(section: Any, path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings({"optimizer": section}, 1, None)
    (problem,) = caught.value.problems
    assert problem.path == path
    assert words in problem.message


def test_problems_of_all_sections_come_at_once() -> None:
    config = {
        "optimizer": {"type": "SGD", "params": {"nesterov": 1, "momentum": "high"}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 2.5, "warmup_type": "cubic"}},
    }
    with pytest.raises(ConfigError) as caught:
        read_settings(config, 1, None)
    assert [problem.path for problem in caught.value.problems] == [
        "optimizer.params.momentum",
        "optimizer.params.nesterov",
        "scheduler.params.total_num_steps",
        "scheduler.params.warmup_num_steps",
        "scheduler.params.warmup_type",
    ]


def test_a_legal_setting_that_is_not_implemented_is_refused_and_one_without_an_effect_is_not() -> None:
    read_settings({"sparse_gradients": False, "steps_per_print": 10, "amp": {"enabled": False}}, 1, None)
    with pytest.raises(UnsupportedError, match="sparse_gradients = true: gradients are dense; set it to false"):
        read_settings({"sparse_gradients": True}, 1, None)


@pytest.mark.parametrize("kind", ["OneBitAdam", "ZeroOneAdam", "OneBitLamb", "Lamb", "MuAdam", "LBFGS"])
def test_a_type_that_deepspeed_has_is_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings({"optimizer": {"type": kind}}, 1, None)
    (problem,) = caught.value.problems
    assert problem.path == "optimizer.type"
    assert problem.message.startswith(REFUSED_TYPES["optimizer"][kind.lower()][0])
    assert "use " in problem.fix


@pytest.mark.parametrize("kind", ["ReduceLROnPlateau", "LambdaLR", "SequentialLR"])
def test_a_schedule_that_json_cannot_build_is_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(REFUSED_TYPES["scheduler"][kind.lower()][0])):
        read_settings({"scheduler": {"type": kind}}, 1, None)


@pytest.mark.parametrize("section", ["optimizer", "scheduler"])
def test_every_type_of_torch_is_read_or_refused_by_name(section: str) -> None:
    of_torch = [
        name
        for name, value in vars(optim if section == "optimizer" else lr_scheduler).items()
        if isinstance(value, type) and issubclass(value, (optim.Optimizer, lr_scheduler.LRScheduler))
    ]
    known = {*component_types(section), *REFUSED_TYPES[section], "optimizer", "_lrscheduler"}
    assert {name.lower() for name in of_torch} <= known
    assert not {*component_types(section)} & {*REFUSED_TYPES[section]}


@pytest.mark.parametrize(
    ("section", "value", "paths"),
    [
        ("optimizer", {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}}, ["betas", "lr"]),
        ("scheduler", {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}, ["warmup_num_steps"]),
        ("scheduler", {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto"}}, ["total_num_steps"]),
    ],
)
def test_an_auto_that_nobody_filled_in_names_those_who_do(section: str, value: Any, paths: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings({section: value}, 1, None)
    assert [problem.path for problem in caught.value.problems] == [f"{section}.params.{path}" for path in paths]
    assert all("Trainer and accelerate" in problem.message for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("kind", "params", "path"),
    [
        ("WarmupCosineLR", {}, "total_num_steps"),
        ("WarmupCosineLR", {"total_num_steps": 0}, "total_num_steps"),
        ("WarmupCosineLR", {"total_num_steps": 10, "warmup_min_ratio": "low"}, "warmup_min_ratio"),
        ("WarmupLR", {"warmup_type": "cubic"}, "warmup_type"),
        ("WarmupLR", {"warmup_num_steps": -1}, "warmup_num_steps"),
        ("WarmupLR", {"warmup_num_steps": 1.5}, "warmup_num_steps"),
        ("OneCycle", {"cycle_min_lr": 0.1}, "cycle_max_lr"),
        ("OneCycle", {"cycle_min_lr": 0.1, "cycle_max_lr": 1, "cycle_first_step_size": 0}, "cycle_first_step_size"),
        ("OneCycle", {"cycle_min_lr": 0.1, "cycle_max_lr": 1, "cycle_momentum": 1}, "cycle_momentum"),
        ("LRRangeTest", {"lr_range_test_step_size": 0}, "lr_range_test_step_size"),
        ("LRRangeTest", {"lr_range_test_min_lr": {}}, "lr_range_test_min_lr"),
        ("CosineAnnealingLR", {}, "T_max"),
        ("StepLR", {"step_size": 2, "gama": 0.1}, "gama"),
    ],
)
def test_a_bad_parameter_of_a_schedule_is_named_by_its_path(kind: str, params: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings({"scheduler": {"type": kind, "params": params}}, 1, None)
    assert [problem.path for problem in caught.value.problems] == [f"scheduler.params.{path}"]


def test_comments_and_kernels_of_deepspeed_are_passed_over() -> None:
    config = {"type": "AdamW", "legacy_fusion": True, "_note": 1, "params": {"lr": 0.1, "//": "rate", "eps": None}}
    assert read_settings({"optimizer": config}, 1, None).optimizer == ComponentSettings("adamw", {"lr": 0.1})


@pytest.mark.parametrize("norm", [0, 1.0, 0.5])
def test_the_old_place_of_gradient_clipping_must_agree_with_the_new_one(norm: float) -> None:
    optimizer = {"type": "Adam", "params": {"max_grad_norm": norm}}
    settings = read_settings({"optimizer": optimizer, "gradient_clipping": norm}, 1, None)
    assert settings.optimizer == ComponentSettings("adam", {})
    if norm == 0.5:
        with pytest.raises(ConfigError, match=r"write gradient_clipping 0\.5"):
            read_settings({"optimizer": optimizer}, 1, None)
