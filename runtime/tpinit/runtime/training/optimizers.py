"""The optimizer that the config names, with DeepSpeed's names and defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import optim
from torch.optim import Adam, AdamW, Optimizer
from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.spellings import show
from tpinit.runtime.errors import UnsupportedError
from tpinit.runtime.settings import ComponentSettings
from tpinit.runtime.training.config_optimizers import Lion, UncorrectedAdam

__all__ = ["build_optimizer"]

# These choose a kernel of DeepSpeed, or how it drops gradients.
_KERNEL_FLAGS = ("set_grad_none", "fp32_optimizer_states", "adamw_mode")


def build_optimizer(component: ComponentSettings, parameters: Iterable[Any]) -> Optimizer:
    """Return the optimizer that the config names. "Adam" is AdamW unless `adam_w_mode` is false, as in DeepSpeed.

    `parameters` are parameters or parameter groups, as torch's optimizers take them. Raises ConfigError for parameters
    that the class refuses (a negative rate), UnsupportedError for `bias_correction` false with `amsgrad`.
    """
    params: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in component.params.items()
        if name not in _KERNEL_FLAGS
    }
    build = _adam if component.kind in ("adam", "adamw") else _class_of(component.kind)
    if build is _adam:
        params["decoupled"] = component.kind == "adamw" or params.pop("adam_w_mode", True) is True
        params.pop("adam_w_mode", None)
    try:
        return build(parameters, **params)
    except (ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, UnsupportedError):
            raise
        path = "optimizer.params"
        raise ConfigError([Problem(path, show(dict(component.params)), str(error), "correct this value")]) from error


def _class_of(kind: str) -> Callable[..., Optimizer]:
    if kind == "lion":
        return Lion
    classes = (value for value in vars(optim).values() if isinstance(value, type))
    return next(value for value in classes if value.__name__.lower() == kind)


def _adam(parameters: Iterable[Any], *, decoupled: bool, **params: Any) -> Optimizer:
    """Return Adam or AdamW as DeepSpeed's options choose it."""
    of_torch = params.pop("torch_adam", False) is True
    if params.pop("bias_correction", True) is not True:
        if params.pop("amsgrad", False):
            raise UnsupportedError("optimizer.params: bias_correction false with amsgrad true is not implemented")
        return UncorrectedAdam(parameters, **_without_kernels(params), decoupled=decoupled)
    # DeepSpeed's own Adam has no weight decay by default; torch's AdamW, which `torch_adam` selects, has 0.01.
    if not of_torch:
        params = {"weight_decay": 0.0, **_without_kernels(params)}
    # The fused kernel reads and writes each tensor once an update instead of about ten times; the arithmetic is equal.
    if not params.get("foreach"):
        params.setdefault("fused", True)
    return (AdamW if decoupled else Adam)(parameters, **params)


def _without_kernels(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name not in ("fused", "foreach")}
