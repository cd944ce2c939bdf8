"""`from_pretrained` and `from_config`: `initialize` for a model that no rank ever holds unsharded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from tpinit.reference.errors import TpinitError
from tpinit.reference.spellings import show
from tpinit.runtime.init.launch import PORT, Started, launch
from tpinit.runtime.init.prepare import InitArgs
from tpinit.runtime.loading.open_model import open_config, open_pretrained
from tpinit.runtime.loading.weight_loading import WeightSource
from tpinit.runtime.planning import UserPlan

__all__ = ["from_config", "from_pretrained"]


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
    distributed_port: int = PORT,
    mpu: Any = None,
    dist_init_required: bool | None = None,
    collate_fn: Callable[..., Any] | None = None,
    config: str | Mapping[str, Any] | None = None,
    mesh_param: Any = None,
    config_params: str | Mapping[str, Any] | None = None,
    verify: str | None = "auto",
    example: Mapping[str, Any] | None = None,
    plan: UserPlan | None = None,
    sequence_parallel: bool = False,
    check_inputs_every: int = 1,
    check_replicas_every: int = 100,
    on_nonfinite: str = "raise",
    timeout: float | timedelta | None = None,
    gather_logits: bool = False,
) -> Started:
    """Load a transformers model from a directory of safetensors, each rank its own slices only, and shard it.

    The result and the keywords are those of `initialize`. The TP size and the dtype come from the config, the mpu or
    the mesh, because there is no model for which to call `tp_model_init`. Here `model_parameters` is a function of the
    model, and `optimizer` one of its parameters. `model_class` and `model_config` replace what the directory's
    config.json says. The model is in training mode. Weights are converted to the dtype of the decision while they are
    read.

    A probe (`verify`) runs with random weights, because it comes before the weights are read. Without one a rank never
    holds more than its own parameters and a few megabytes. Every file is checked on every rank before
    weights are read. Raises what `initialize` raises, and LoadError, the same on every rank, for a checkpoint that is
    damaged, incomplete, in torch's own format, quantized, or of another model.
    """
    return launch(
        InitArgs.from_locals(locals()),
        distributed_port=distributed_port,
        dist_init_required=dist_init_required,
        collate_fn=collate_fn,
        verify=verify,
        open_weights=lambda: open_pretrained(Path(directory), model_class, model_config),
    )


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
    distributed_port: int = PORT,
    mpu: Any = None,
    dist_init_required: bool | None = None,
    collate_fn: Callable[..., Any] | None = None,
    config: str | Mapping[str, Any] | None = None,
    mesh_param: Any = None,
    config_params: str | Mapping[str, Any] | None = None,
    verify: str | None = "auto",
    example: Mapping[str, Any] | None = None,
    plan: UserPlan | None = None,
    sequence_parallel: bool = False,
    check_inputs_every: int = 1,
    check_replicas_every: int = 100,
    on_nonfinite: str = "raise",
    timeout: float | timedelta | None = None,
    gather_logits: bool = False,
) -> Started:
    """Build a model with random weights, those of `torch.manual_seed(seed); model_class(model_config)`, and shard it.

    `model_config` is a transformers config, or a function without arguments that builds any model. Each rank draws all
    weights in order and keeps its own slices, so it never holds more than these and one other parameter, or a few
    megabytes if a parameter must be drawn at once. The caller's RNG state is unchanged.

    The result and the other keywords are those of `from_pretrained`. Raises what `initialize` raises, LoadError for a
    model whose parameters can't be drawn one by one, and TpinitError for a seed that is not an integer.
    """

    def open_weights() -> WeightSource:
        if type(seed) is not int:
            raise TpinitError(f"seed is {show(seed)}, and must be an integer")
        return open_config(model_config, model_class, seed)

    return launch(
        InitArgs.from_locals(locals()),
        distributed_port=distributed_port,
        dist_init_required=dist_init_required,
        collate_fn=collate_fn,
        verify=verify,
        open_weights=open_weights,
    )
