"""The optimizer that the config names, with DeepSpeed's names and defaults."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer
from tpinit.runtime.errors import UnsupportedError
from tpinit.runtime.settings import ComponentSettings

__all__ = ["build_optimizer"]


def build_optimizer(component: ComponentSettings, parameters: Iterable[Any]) -> Optimizer:
    """Return the torch optimizer that the config names. "Adam" is AdamW unless `adam_w_mode` is false, as in DeepSpeed.

    `parameters` are parameters or parameter groups, as torch's optimizers take them. Raises UnsupportedError for
    `bias_correction` false, which torch's Adam can't do.
    """
    params = dict(component.params)
    if component.kind == "sgd":
        return SGD(parameters, **params)  # type: ignore[arg-type]  # names and types were checked in settings
    if params.pop("bias_correction", True) is not True:
        raise UnsupportedError(
            "optimizer.params.bias_correction = false is not implemented: torch's Adam always corrects the bias; "
            "leave the key out"
        )
    decoupled = component.kind == "adamw" or params.pop("adam_w_mode", True) is True
    params.pop("adam_w_mode", None)
    # DeepSpeed's own Adam has no weight decay by default; torch's AdamW, which `torch_adam` selects, has 0.01.
    if params.pop("torch_adam", False) is not True:
        params.setdefault("weight_decay", 0.0)
    if "betas" in params:
        params["betas"] = tuple(params["betas"])  # type: ignore[arg-type]  # a pair, checked in settings
    # The fused kernel reads and writes each tensor once an update instead of about ten times; the arithmetic is equal.
    return (AdamW if decoupled else Adam)(parameters, **params, fused=True)  # type: ignore[arg-type]  # as for SGD
