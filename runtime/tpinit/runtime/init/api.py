"""`tp_model_init`, `initialize` and `set_autotp_mode`, with DeepSpeed's signatures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tpinit.reference.errors import TpinitError
from tpinit.reference.objects import CallArgs
from tpinit.reference.spellings import nearest
from tpinit.runtime.init.call_registry import RecordedCall, is_initialized, record_call
from tpinit.runtime.init.launch import PORT, launch
from tpinit.runtime.init.prepare import InitArgs
from tpinit.runtime.planning import UserPlan
from tpinit.runtime.training.engine import Engine

__all__ = ["initialize", "set_autotp_mode", "tp_model_init"]

_KEYWORDS = ("tp_group",)


def set_autotp_mode(training: bool = False) -> None:
    """Do nothing: DeepSpeed's global switch, accepted so that its callers run. `initialize` needs no mode here."""


def tp_model_init(
    model: nn.Module, tp_size: int, dtype: torch.dtype | str, config: object = None, **kwargs: object
) -> nn.Module:
    """Record that `model` is to be tensor-parallel, and return it unchanged. `initialize` shards it.

    `tp_size` is the number of ranks in a TP group, `dtype` the dtype of the parameters (D8), the keyword `tp_group` a
    process group. `config` is not read for the decision; if given, it must equal the config that `initialize` gets. A
    second call for the same model must have the same arguments (D9). The first `initialize` of this model that succeeds
    removes the record; one that fails leaves it for a corrected call.

    Raises TpinitError for an unknown keyword and for a model that is not a torch.nn.Module, ConfigError for an unknown
    dtype, ConflictingCallsError (D9) for a call that differs from an earlier one.
    """
    unknown = [name for name in kwargs if name not in _KEYWORDS]
    if unknown:
        near = {name: nearest(name, ("tp_size", "dtype", "config", *_KEYWORDS)) or _KEYWORDS[0] for name in unknown}
        hints = ", ".join(f"{name} (did you mean {right}?)" for name, right in near.items())
        raise TpinitError(f"tp_model_init has no argument {hints}; legal: model, tp_size, dtype, config, tp_group")
    if not isinstance(model, nn.Module):
        raise TpinitError(f"model is a {type(model).__qualname__}, and must be a torch.nn.Module")
    if is_initialized(model):
        warnings.warn(
            "tp_model_init only records: this model is already initialized, and nothing changes", stacklevel=2
        )
    record_call(model, RecordedCall(CallArgs(tp_size, dtype, kwargs.get("tp_group")), config))
    return model


def initialize(
    args: Any = None,
    model: nn.Module | None = None,
    optimizer: Optimizer | Callable[[Iterable[Any]], Optimizer] | None = None,
    model_parameters: Iterable[Any] | None = None,
    training_data: Any = None,
    lr_scheduler: Any = None,
    distributed_port: int = PORT,
    mpu: Any = None,
    dist_init_required: bool | None = None,
    collate_fn: Callable[..., Any] | None = None,
    config: str | Mapping[str, Any] | None = None,
    mesh_param: Any = None,
    config_params: str | Mapping[str, Any] | None = None,
    *,
    verify: str | None = "auto",
    example: Mapping[str, Any] | None = None,
    plan: UserPlan | None = None,
    sequence_parallel: bool = False,
    check_inputs_every: int = 1,
    check_replicas_every: int = 100,
    on_nonfinite: str = "raise",
    timeout: float | timedelta | None = None,
    gather_logits: bool = False,
) -> tuple[Engine, Optimizer | None, DataLoader[Any] | None, Any]:
    """Shard the model by the rules of the contract; return (engine, optimizer, dataloader, lr_scheduler).

    The arguments and their order are DeepSpeed's. Give the config as `config`, `config_params` or
    `args.deepspeed_config`, and only once. `mesh_param` is a torch DeviceMesh with a `tp` dimension. An `optimizer` or
    `lr_scheduler` argument is used instead of the config's, with a warning, as in DeepSpeed; an optimizer that has
    state is refused. If torch.distributed is not initialised, it is started from torchrun's environment.

    Every rank must call this, with equal initial weights. The model is changed only after all ranks have read, decided
    and planned the same: if one rank fails or was given something else, all ranks raise. Then the model's parameters,
    buffers, dtype and device are changed in place.

    These keywords are not DeepSpeed's:

    - `verify`: planning always checks every sharded region by a dry run. "probe" also compares a small forward and
      backward with those of the unsharded model, in the memory of two fp32 copies. "auto" does so for a class that
      docs/models.md lacks, up to 2^30 elements. All but "none" and None check new forwards too (docs/checks.md).
    - `example`: the keyword arguments of one small forward, if the transformers config does not describe the inputs.
    - `plan`: a Plan, its `to_json`, perhaps edited, or the path of a JSON file of that, instead of any other plan.
    - `sequence_parallel`: also shard the tokens between the sharded regions. The TP size must divide their number.
    - `check_inputs_every`: a TP group's ranks compare their inputs before every so many forwards; 0 never.
    - `check_replicas_every`: the ranks compare the copies of their parameters after every so many updates; 0 never.
    - `on_nonfinite`: what a NaN or infinite loss or gradient norm does: "raise", "skip" the update, or "ignore" it.
    - `gather_logits`: training outputs beside labels have the logits, by an all-gather of them (docs/outputs.md).
    - `timeout`: of the collectives of the groups that this call makes, in seconds or a timedelta (docs/devices.md).

    Raises DecisionError (a violation, the same on every rank), ConfigError (malformed input), AgreementError (ranks
    differ), DeviceError, GroupError, PlanError and UnsupportedError: all are TpinitError.
    """
    return launch(
        InitArgs.from_locals(locals()),
        distributed_port=distributed_port,
        dist_init_required=dist_init_required,
        collate_fn=collate_fn,
        verify=verify,
    )
