"""The optimizers that a config names: Lion and Adam without bias correction by their papers, torch's by its classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tpinit.reference.errors import ConfigError
from tpinit.runtime.errors import UnsupportedError
from tpinit.runtime.settings import read_settings
from tpinit.runtime.training.config_optimizers import Lion, UncorrectedAdam
from tpinit.runtime.training.optimizer_kinds import OptimizerKind, classify
from tpinit.runtime.training.optimizer_trial import try_optimizer
from tpinit.runtime.training.optimizers import build_optimizer

rates = st.floats(1e-4, 0.5)
fractions = st.floats(0, 0.99)


def built(kind: str, params: dict[str, Any], *parameters: torch.nn.Parameter) -> torch.optim.Optimizer:
    """Return the optimizer that a config names, read as `initialize` reads it."""
    settings = read_settings({"optimizer": {"type": kind, "params": params}}, 1, None)
    assert settings.optimizer is not None
    return build_optimizer(settings.optimizer, list(parameters) or [torch.nn.Parameter(torch.ones(3, 2))])


def trained(kind: str, params: dict[str, Any], gradients: list[torch.Tensor]) -> torch.Tensor:
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2))
    optimizer = built(kind, params, weight)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


def gradients(count: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(3, 2, dtype=torch.float64, generator=generator) for _ in range(count)]


@given(lr=rates, first=fractions, second=fractions, decay=fractions)
def test_lion_is_the_papers_update(lr: float, first: float, second: float, decay: float) -> None:
    weight = torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2)
    momentum = torch.zeros_like(weight)
    for gradient in gradients():
        update = torch.sign(first * momentum + (1 - first) * gradient)
        weight = weight - lr * (update + decay * weight)
        momentum = second * momentum + (1 - second) * gradient
    params = {"lr": lr, "betas": [first, second], "weight_decay": decay}
    torch.testing.assert_close(trained("Lion", params, gradients()), weight, rtol=1e-12, atol=1e-12)


@given(lr=rates, first=fractions, second=fractions, decay=fractions, decoupled=st.booleans())
def test_adam_without_bias_correction(lr: float, first: float, second: float, decay: float, decoupled: bool) -> None:
    weight = torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2)
    average, squares = torch.zeros_like(weight), torch.zeros_like(weight)
    for given_gradient in gradients():
        gradient = given_gradient if decoupled else given_gradient + decay * weight
        average = first * average + (1 - first) * gradient
        squares = second * squares + (1 - second) * gradient**2
        step = average / (squares.sqrt() + 1e-6) + (decay * weight if decoupled else 0)
        weight = weight - lr * step
    params = {"lr": lr, "betas": [first, second], "weight_decay": decay, "eps": 1e-6, "bias_correction": False}
    found = trained("Adam", {**params, "adam_w_mode": decoupled}, gradients())
    torch.testing.assert_close(found, weight, rtol=1e-9, atol=1e-9)


def test_bias_correction_is_not_left_out_by_chance() -> None:
    """The negative control: the corrected Adam goes another way."""
    params = {"lr": 0.1}
    assert not torch.allclose(
        trained("Adam", params, gradients()), trained("Adam", {**params, "bias_correction": False}, gradients())
    )


@pytest.mark.parametrize("kind", [Lion, UncorrectedAdam])
def test_the_updates_are_elementwise(kind: type[torch.optim.Optimizer]) -> None:
    optimizer = kind([torch.nn.Parameter(torch.ones(3, 2))])  # type: ignore[call-arg]  # the defaults of each class
    assert classify(optimizer) is OptimizerKind.ELEMENTWISE
    assert try_optimizer(optimizer, kind.__name__)


@pytest.mark.parametrize(
    ("kind", "params", "expected", "options"),
    [
        ("Adam", {"lr": 0.1}, torch.optim.AdamW, {"weight_decay": 0.0, "lr": 0.1}),
        ("ADAM", {"adam_w_mode": False}, torch.optim.Adam, {"weight_decay": 0.0}),
        ("AdamW", {"torch_adam": True}, torch.optim.AdamW, {"weight_decay": 0.01}),
        ("AdamW", {"betas": [0.9, 0.95], "set_grad_none": True}, torch.optim.AdamW, {"betas": (0.9, 0.95)}),
        ("AdamW", {"betas": None}, torch.optim.AdamW, {"betas": (0.9, 0.999)}),
        ("Lion", {"lr": 0.1}, Lion, {"betas": (0.9, 0.999), "weight_decay": 0.0}),
        ("Adagrad", {"lr_decay": 0.1}, torch.optim.Adagrad, {"lr_decay": 0.1}),
        ("RMSprop", {"alpha": 0.9, "centered": True}, torch.optim.RMSprop, {"alpha": 0.9, "centered": True}),
        ("Adafactor", {"d": 2.0, "eps": [None, 0.01]}, torch.optim.Adafactor, {"d": 2.0, "eps": (None, 0.01)}),
        ("NAdam", {}, torch.optim.NAdam, {}),
        ("sgd", {"momentum": 0.9, "nesterov": True}, torch.optim.SGD, {"nesterov": True}),
    ],
)
def test_a_type_is_its_class_with_its_options(kind: str, params: dict[str, Any], expected: type, options: Any) -> None:
    optimizer = built(kind, params)
    assert type(optimizer) is expected
    (group,) = optimizer.param_groups
    assert {name: group[name] for name in options} == options


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("AdamW", {"lr": -1}),
        ("AdamW", {"betas": [0.9, 1.5]}),
        ("Lion", {"lr": -1}),
        ("Lion", {"betas": [1.0, 0.9]}),
        ("Adam", {"bias_correction": False, "eps": -1}),
        ("SGD", {"nesterov": True}),
        ("RMSprop", {"momentum": -0.1}),
    ],
)
def test_a_value_that_the_class_refuses_is_an_error_of_the_config(kind: str, params: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.params"):
        built(kind, params)


def test_amsgrad_without_bias_correction_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="amsgrad"):
        built("Adam", {"bias_correction": False, "amsgrad": True})
