"""The optimizer and scheduler sections: what is malformed is named by its path, everything at once."""

from __future__ import annotations

from typing import Any

import pytest
from tpinit.reference.errors import ConfigError
from tpinit.runtime.errors import UnsupportedError
from tpinit.runtime.settings import ComponentSettings, read_settings


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
