"""Choose the optimizer of a run: the caller's, the result of the caller's function, or the config's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from tpinit.runtime.errors import PlanError, UnsupportedError
from tpinit.runtime.groups.agreement import flatten
from tpinit.runtime.settings import Settings
from tpinit.runtime.training.optimizers import build_optimizer
from tpinit.runtime.training.schedules import check_schedule

__all__ = ["choose_optimizer"]


def choose_optimizer(
    given: Optimizer | Callable[[Iterable[Any]], Optimizer] | None,
    model_parameters: Iterable[Any] | Callable[[nn.Module], Iterable[Any]] | None,
    lr_scheduler: Any,
    model: nn.Module,
    settings: Settings,
    compared: dict[str, object],
) -> Optimizer | None:
    """Return the optimizer over the model's own Parameter objects; None if neither the call nor the config has one.

    `given` is the `optimizer` argument, which is used instead of the config's. Adds to `compared` the optimizer's type,
    and the parameter names and options of each group: they must be equal on the ranks. Raises UnsupportedError for an
    optimizer that has state and for a schedule without an optimizer, PlanError for parameters of another model,
    ConfigError for options that the config's optimizer or schedule refuses.
    """
    if given is not None and settings.optimizer is not None:
        warnings.warn("the optimizer argument is used, and the config's optimizer is not", stacklevel=6)
    if lr_scheduler is not None and settings.scheduler is not None:
        warnings.warn("the lr_scheduler argument is used, and the config's scheduler is not", stacklevel=6)
    chosen: Any = model_parameters(model) if callable(model_parameters) else model_parameters
    parameters = list(chosen) if chosen is not None else list(model.parameters())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer: Optimizer
    if isinstance(given, Optimizer):
        optimizer = given
    elif given is not None:
        optimizer = given(parameters)
    elif settings.optimizer is not None:
        optimizer = build_optimizer(settings.optimizer, parameters, names)
    elif settings.scheduler is not None or lr_scheduler is not None:
        raise UnsupportedError("there is a learning-rate schedule and no optimizer: add one to the config or the call")
    else:
        return None
    if settings.scheduler is not None and lr_scheduler is None:
        check_schedule(settings.scheduler, optimizer)
    _check_optimizer(optimizer, names)
    compared["optimizer.type"] = type(optimizer).__name__
    for index, group in enumerate(optimizer.param_groups):
        path = f"optimizer.param_groups[{index}]"
        compared[f"{path}.params"] = [names[id(parameter)] for parameter in group["params"]]
        compared.update(flatten({key: value for key, value in group.items() if key != "params"}, path))
    return optimizer


def _check_optimizer(optimizer: Optimizer, names: Mapping[int, str]) -> None:
    """Raise unless the optimizer has no state and holds only the model's parameters, whose ids are keys of `names`."""
    if optimizer.state:
        raise UnsupportedError(
            "the optimizer already has state, which has the shapes of the unsharded parameters: make a new optimizer "
            "before initialize"
        )
    foreign = sum(id(parameter) not in names for group in optimizer.param_groups for parameter in group["params"])
    if foreign:
        raise PlanError(
            f"{foreign} parameters of the optimizer are not the model's: build the optimizer from this model"
        )
