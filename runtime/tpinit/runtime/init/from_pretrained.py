"""`from_pretrained` and `from_config`: `initialize` for a model that no rank ever holds whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tpinit.reference.errors import TpinitError
from tpinit.reference.spellings import show
from tpinit.runtime.init.api import launch
from tpinit.runtime.init.prepare import InitArgs
from tpinit.runtime.loading.open_model import open_config, open_pretrained
from tpinit.runtime.loading.weight_loading import WeightSource
from tpinit.runtime.training.engine import Engine

__all__ = ["from_config", "from_pretrained"]

_PORT = 29500
_FLOATS = ("F64", "F32", "F16", "BF16")
Started = tuple[Engine, Optimizer | None, DataLoader[Any] | None, Any]


def from_pretrained(
    directory: str | os.PathLike[str],
    *,
    model_class: type[nn.Module] | None = None,
    model_config: Any = None,
    args: Any = None,
    optimizer: Optimizer | Callable[[Iterable[Any]], Optimizer] | None = None,
    model_parameters: Callable[[nn.Module], Iterable[Any]] | None = None,
    training_data: Any = None,
    lr_scheduler: Any = None,
    distributed_port: int = _PORT,
    mpu: Any = None,
    dist_init_required: bool | None = None,
    collate_fn: Callable[..., Any] | None = None,
    config: str | Mapping[str, Any] | None = None,
    mesh_param: Any = None,
    config_params: str | Mapping[str, Any] | None = None,
    example: Mapping[str, Any] | None = None,
    plan: Any = None,
    sequence_parallel: bool = False,
) -> Started:
    """Load a transformers model from a directory of safetensors, each rank its own slices alone.

    What comes back, and the keywords, are those of `initialize`; the TP size and the dtype come from the config,
    the mpu or the mesh, since there is no model to call `tp_model_init` for. `model_parameters` is a function of
    the model here, and an `optimizer` one of parameters. `model_class` and `model_config` stand in for what the
    directory's config.json says. The model is in training mode. Stored numbers are converted to the dtype of
    the decision while they are read.

    No rank holds more at once than its own parameters and a few megabytes. Every file is checked, on every
    rank, before anything is cut. Raises what `initialize` raises, and LoadError for a checkpoint that is
    damaged, incomplete, in torch's own format, quantized, or of another model; the same on every rank.
    """
    folder = Path(directory)

    def bring() -> WeightSource:
        return open_pretrained(folder, model_class, model_config)

    given = InitArgs(
        args=args,
        optimizer=optimizer,
        model_parameters=model_parameters,
        training_data=training_data,
        lr_scheduler=lr_scheduler,
        mpu=mpu,
        config=config,
        mesh_param=mesh_param,
        config_params=config_params,
        example=example,
        plan=plan,
        sequence_parallel=sequence_parallel,
    )
    return launch(given, distributed_port, dist_init_required, collate_fn, bring=bring)


def from_config(
    model_config: Any,
    *,
    seed: int,
    model_class: type[nn.Module] | None = None,
    args: Any = None,
    optimizer: Optimizer | Callable[[Iterable[Any]], Optimizer] | None = None,
    model_parameters: Callable[[nn.Module], Iterable[Any]] | None = None,
    training_data: Any = None,
    lr_scheduler: Any = None,
    distributed_port: int = _PORT,
    mpu: Any = None,
    dist_init_required: bool | None = None,
    collate_fn: Callable[..., Any] | None = None,
    config: str | Mapping[str, Any] | None = None,
    mesh_param: Any = None,
    config_params: str | Mapping[str, Any] | None = None,
    example: Mapping[str, Any] | None = None,
    plan: Any = None,
    sequence_parallel: bool = False,
) -> Started:
    """Start a model with random weights, the very numbers of `torch.manual_seed(seed); model_class(model_config)`.

    `model_config` is a transformers config, or a function without arguments that builds any model. Each rank
    draws every number in order and keeps its own slices: no rank holds more at once than these and one other
    parameter, or a few megabytes where that is drawn at once. The caller's random state is left alone.

    What comes back, and the other keywords, are those of `from_pretrained`. Raises what `initialize` raises, and
    LoadError for a model whose parameters can't be drawn one by one.
    """
    if type(seed) is not int:
        raise TpinitError(f"seed is {show(seed)}, and must be an integer")

    def bring() -> WeightSource:
        return open_config(model_config, model_class, seed)

    given = InitArgs(
        args=args,
        optimizer=optimizer,
        model_parameters=model_parameters,
        training_data=training_data,
        lr_scheduler=lr_scheduler,
        mpu=mpu,
        config=config,
        mesh_param=mesh_param,
        config_params=config_params,
        example=example,
        plan=plan,
        sequence_parallel=sequence_parallel,
    )
    return launch(given, distributed_port, dist_init_required, collate_fn, bring=bring)
