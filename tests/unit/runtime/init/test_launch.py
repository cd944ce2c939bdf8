"""Every argument of the three public functions reaches `launch`, and their signatures are DeepSpeed's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from tpinit.runtime.init import api, from_pretrained
from tpinit.runtime.init.prepare import InitArgs

KEYWORDS = ("distributed_port", "dist_init_required", "collate_fn", "verify")
WEIGHTS = ("directory", "model_class", "model_config", "seed")  # for the source of the weights
DEEPSPEED = (
    "args",
    "model",
    "optimizer",
    "model_parameters",
    "training_data",
    "lr_scheduler",
    "distributed_port",
    "mpu",
    "dist_init_required",
    "collate_fn",
    "config",
    "mesh_param",
    "config_params",
)
PUBLIC = (
    (api, api.initialize),
    (from_pretrained, from_pretrained.from_pretrained),
    (from_pretrained, from_pretrained.from_config),
)


@pytest.mark.parametrize(("module", "function"), PUBLIC, ids=lambda value: getattr(value, "__name__", ""))
def test_every_argument_is_passed_on(
    module: Any, function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def record(init_args: InitArgs, **keywords: Any) -> None:
        seen.update(keywords)
        seen.update({field.name: getattr(init_args, field.name) for field in fields(InitArgs)})

    monkeypatch.setattr(module, "launch", record)
    names = list(inspect.signature(function).parameters)
    values: dict[str, Any] = {name: 7 if name == "seed" else object() for name in names}
    function(**values)
    assert seen.pop("weights") is None
    passed = {name: value for name, value in values.items() if name not in WEIGHTS}
    assert {name: seen[name] for name in passed} == passed
    # What the function does not take has its default.
    assert {name for name, value in seen.items() if value is not None and name not in passed} <= {
        "open_weights",
        "sequence_parallel",
    }
    assert set(passed) >= {field.name for field in fields(InitArgs)} - {"weights", "model"}


def test_the_positional_order_is_deepspeeds() -> None:
    parameters = inspect.signature(api.initialize).parameters.values()
    positional = tuple(one.name for one in parameters if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert positional == DEEPSPEED
    assert set(KEYWORDS) <= set(inspect.signature(api.initialize).parameters)
