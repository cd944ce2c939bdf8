"""The optimizer that the config names, with DeepSpeed's names and defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import optim
from torch.optim import Adam, AdamW, Optimizer
from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.spellings import show
from tpinit.runtime.errors import UnsupportedError
from tpinit.runtime.settings import ComponentSettings
from tpinit.runtime.training.config_optimizers import Lion, MuonAdamW, UncorrectedAdam

__all__ = ["build_optimizer"]

# These choose a kernel of DeepSpeed, or how it drops gradients; `per_head_muon` is false.
_KERNEL_FLAGS = ("set_grad_none", "fp32_optimizer_states", "adamw_mode", "ns_method", "per_head_muon")
_MUON_KEYS = {True: ("lr", "momentum", "weight_decay"), False: ("lr", "betas", "eps", "weight_decay")}
_MATRIX = 2


def build_optimizer(
    component: ComponentSettings, parameters: Iterable[Any], names: Mapping[int, str] | None = None
) -> Optimizer:
    """Return the optimizer that the config names. "Adam" is AdamW unless `adam_w_mode` is false, as in DeepSpeed.

    `parameters` are parameters or parameter groups, as torch's optimizers take them; `names` are the model's, by the id
    of a parameter. Raises ConfigError for parameters that the class refuses (a negative rate), UnsupportedError for
    `bias_correction` false with `amsgrad`, and for Muon over tensors of three dimensions or more.
    """
    params: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in component.params.items()
        if name not in _KERNEL_FLAGS
    }
    build = _adam if component.kind in ("adam", "adamw") else _class_of(component.kind)
    if component.kind == "muon":
        build = partial(_muon, names=names or {})
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


def _muon(parameters: Iterable[Any], *, names: Mapping[int, str], adam_w_mode: bool = True, **params: Any) -> Optimizer:
    """Return Muon over the matrices of layers and AdamW over the rest, which DeepSpeed tells by name and shape.

    Each group of `parameters` becomes two; its own options win. "gram" and "standard" are one iteration in exact
    arithmetic, and torch's is the second.
    """
    rates = {True: params.pop("muon_lr", None), False: params.pop("adam_lr", None)}
    groups = []
    for group in _as_groups(parameters):
        trained = [one for one in group["params"] if one.requires_grad]
        for use_muon, keys in _MUON_KEYS.items():
            own = [one for one in trained if _is_muons(one, names.get(id(one), "")) is use_muon]
            options = {key: value for key, value in params.items() if key in keys}
            if rates[use_muon] is not None:
                options["lr"] = rates[use_muon]
            options |= {key: value for key, value in group.items() if key in keys}
            if own:
                groups.append({"params": own, "use_muon": use_muon, **options})
    for group in groups:
        for one in group["params"] if group["use_muon"] else ():
            if one.ndim != _MATRIX:
                raise UnsupportedError(
                    f"the optimizer Muon updates matrices, and {names.get(id(one), 'a parameter')} has {one.ndim} "
                    "dimensions: use AdamW, or give initialize an optimizer of your own"
                )
    return MuonAdamW(groups, decoupled=adam_w_mode)


def _as_groups(parameters: Iterable[Any]) -> list[dict[str, Any]]:
    """Return parameter groups; parameters outside of any are the last group, as in DeepSpeed."""
    given = list(parameters)
    groups = [{**one, "params": list(one["params"])} for one in given if isinstance(one, dict)]
    loose = [one for one in given if not isinstance(one, dict)]
    return [*groups, {"params": loose}] if loose else groups


def _is_muons(parameter: torch.Tensor, name: str) -> bool:
    return parameter.ndim >= _MATRIX and not any(word in name.lower() for word in ("embed", "lm_head"))


def _without_kernels(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name not in ("fused", "foreach")}
