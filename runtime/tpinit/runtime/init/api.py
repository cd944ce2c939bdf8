"""`tp_model_init`, `initialize` and `set_autotp_mode`, with DeepSpeed's signatures (contract, whole)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tpinit.reference.errors import TpinitError
from tpinit.reference.objects import CallArgs
from tpinit.reference.spellings import nearest
from tpinit.runtime.errors import PlanError, UnsupportedError
from tpinit.runtime.groups import agreement, world
from tpinit.runtime.groups import process_groups as groups
from tpinit.runtime.init import call_registry as records
from tpinit.runtime.init.apply import apply_plan
from tpinit.runtime.init.prepare import InitArgs, Prepared, prepare
from tpinit.runtime.init.probe import VERIFY_MODES, probe
from tpinit.runtime.loading.weight_loading import WeightSource, load_weights
from tpinit.runtime.planning import UserPlan
from tpinit.runtime.training.data import make_loader
from tpinit.runtime.training.engine import Engine
from tpinit.runtime.training.optimizers import build_schedule, make_param_states
from tpinit.spec.vocabulary import DType

__all__ = ["initialize", "launch", "set_autotp_mode", "tp_model_init"]

_PORT = 29500  # DeepSpeed's default, and torchrun's
_KEYWORDS = ("tp_group",)
_TORCH = {DType.FP32: torch.float32, DType.FP16: torch.float16, DType.BF16: torch.bfloat16}


def set_autotp_mode(training: bool = False) -> None:
    """Accept DeepSpeed's switch and do nothing: nothing here is global, and `initialize` needs no mode."""


def tp_model_init(
    model: nn.Module, tp_size: int, dtype: torch.dtype | str, config: object = None, **kwargs: object
) -> nn.Module:
    """Record that `model` is to be tensor-parallel, and return it untouched. `initialize` does the rest.

    `tp_size` is in ranks, `dtype` what the parameters shall have (D8), `tp_group` a process group. `config`
    decides nothing; if given it must hold what `initialize` gets. Another call for the same model must agree
    (D9). The record is consumed by the first `initialize` of this model that succeeds: one that fails leaves
    it, so that it can be corrected and repeated.

    Raises TpinitError for an unknown keyword or a model that is none, ConfigError for a dtype that is none,
    ConflictingCallsError (D9) for a call that disagrees with an earlier one.
    """
    unknown = [name for name in kwargs if name not in _KEYWORDS]
    if unknown:
        near = {name: nearest(name, ("tp_size", "dtype", "config", *_KEYWORDS)) or _KEYWORDS[0] for name in unknown}
        hints = ", ".join(f"{name} (did you mean {right}?)" for name, right in near.items())
        raise TpinitError(f"tp_model_init has no argument {hints}; legal: model, tp_size, dtype, config, tp_group")
    if not isinstance(model, nn.Module):
        raise TpinitError(f"model is a {type(model).__qualname__}, and must be a torch.nn.Module")
    if records.is_initialized(model):
        warnings.warn("tp_model_init only records: this model is already initialized and stays as it is", stacklevel=2)
    records.record_call(model, records.RecordedCall(CallArgs(tp_size, dtype, kwargs.get("tp_group")), config))
    return model


def initialize(
    args: Any = None,
    model: nn.Module | None = None,
    optimizer: Optimizer | Callable[[Iterable[Any]], Optimizer] | None = None,
    model_parameters: Iterable[Any] | None = None,
    training_data: Any = None,
    lr_scheduler: Any = None,
    distributed_port: int = _PORT,
    mpu: Any = None,
    dist_init_required: bool | None = None,
    collate_fn: Callable[..., Any] | None = None,
    config: str | Mapping[str, Any] | None = None,
    mesh_param: Any = None,
    config_params: str | Mapping[str, Any] | None = None,
    *,
    verify: str = "rehearsal",
    example: Mapping[str, Any] | None = None,
    plan: UserPlan | None = None,
    sequence_parallel: bool = False,
) -> tuple[Engine, Optimizer | None, DataLoader[Any] | None, Any]:
    """Decide by the contract, cut the model, and return (engine, optimizer, dataloader, lr_scheduler).

    The arguments and their order are DeepSpeed's. The config comes as `config`, `config_params` or
    `args.deepspeed_config`, and only once. `mesh_param` takes a torch DeviceMesh with a `tp` dimension. An
    `optimizer` or `lr_scheduler` that is passed overrides the config's, with a warning, as in DeepSpeed; an
    optimizer with state is refused. Without torch.distributed, it is started from torchrun's environment.

    Nothing is changed until every rank has read, decided and planned the same: what one rank can't honour,
    or was given differently, raises on all of them. The model's parameters, buffers, dtype and device are
    then changed in place. Every rank must call this, and every rank must hold the same initial weights.

    Four keywords are ours. `verify` is "rehearsal" (every cut is rehearsed when it is planned) or "probe" (besides,
    a small forward and backward of the whole model is compared with the sharded one: two more copies of the
    model, for the time of it). `example` are keyword arguments of one small forward, for a model whose inputs
    can't be told from its transformers config. `plan` is a plan to follow, perhaps edited: a Plan, what its
    `to_json` returned, or the path of a JSON file of that. It goes before the config's and the model's own, and is
    checked against the model and rehearsed. `sequence_parallel` cuts the tokens too: between the cut regions of its
    layers each rank then holds its part of the sequence, as many bytes are sent, and less memory is taken. Sequences
    must have a length that the TP size divides.

    Raises DecisionError (a violation, the same on every rank), ConfigError (malformed input), AgreementError
    (ranks differ), GroupError, PlanError, UnsupportedError: all are TpinitError.
    """
    if verify not in VERIFY_MODES:
        raise TpinitError(f"verify is {verify!r}, and must be one of {', '.join(VERIFY_MODES)}")
    given = InitArgs(
        args=args,
        model=model,
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
    return launch(given, distributed_port, dist_init_required, collate_fn, verify)


def launch(
    given: InitArgs,
    distributed_port: int,
    dist_init_required: bool | None,
    collate_fn: Callable[..., Any] | None,
    verify: str = "rehearsal",
    bring: Callable[[], WeightSource] | None = None,
) -> tuple[Engine, Optimizer | None, DataLoader[Any] | None, Any]:
    """Do what `initialize` says. `bring`, where given, builds the model without its numbers, which come last."""
    if type(given.sequence_parallel) is not bool:
        raise TpinitError(f"sequence_parallel is {given.sequence_parallel!r}, and must be True or False")
    world.start(distributed_port, dist_init_required)
    device = world.local_device()
    report = agreement.RankReport()
    ready: Prepared | None = None
    failure: Exception | None = None
    try:
        if bring is not None:
            weights = bring()
            given = replace(given, model=weights.model, weights=weights)
        ready = prepare(given, report)
    except Exception as error:  # whatever it is, the other ranks wait for this rank's report
        failure = error
        report.error = agreement.describe_error(error)
    reports = agreement.gather_reports(report)
    agreement.check_reports(reports)
    if failure is not None:
        raise failure
    assert ready is not None
    layout = groups.plan_groups(ready.decision, [one.tp_ranks for one in reports], [one.dp_ranks for one in reports])
    alike = agreement.check_replicas(reports, layout.dp_groups)
    if not alike and ready.settings.clipping:
        raise UnsupportedError(
            "row 2: ranks that do not average together hold different models, and a gradient norm over different "
            "models is not implemented: set gradient_clipping to 0"
        )
    mesh = groups.create_groups(layout, ready.decision, dist.get_rank())
    if verify == "probe" and mesh.tp.group is not None:
        _probe(ready, mesh, device, given.example)
    return _carry_out(ready, given, layout, mesh, device, collate_fn)


def _probe(
    ready: Prepared, mesh: groups.ParallelGroups, device: torch.device, example: Mapping[str, Any] | None
) -> None:
    """Raise PlanError, the same on every rank, where the sharded model computes something else on any of them."""
    plan = replace(ready.plan, tp_rank=mesh.tp.position)
    told = agreement.gather_reports(agreement.RankReport(error=probe(ready.model, plan, mesh, device, example)))
    wrong = [f"rank {rank}: {one.error}" for rank, one in enumerate(told) if one.error is not None]
    if wrong:
        raise PlanError("the sharded model is not the whole one, and nothing was changed: " + "; ".join(wrong))


def _carry_out(
    ready: Prepared,
    given: InitArgs,
    layout: groups.GroupLayout,
    mesh: groups.ParallelGroups,
    device: torch.device,
    collate_fn: Callable[..., Any] | None,
) -> tuple[Engine, Optimizer | None, DataLoader[Any] | None, Any]:
    """Do what all ranks have agreed on: cut, slots, schedule, data, engine."""
    plan = replace(ready.plan, tp_rank=mesh.tp.position)
    dtype = _TORCH[ready.decision.dtype.value] if ready.decision.dtype.value is not None else None
    if given.weights is None:
        apply_plan(ready.model, plan, mesh.tp.group, dtype, device)
    else:
        load_weights(given.weights, plan, layout.dp_groups, dtype)
        # Every parameter already holds its part: the plan is applied to the modules alone.
        apply_plan(ready.model, plan, mesh.tp.group, None, device, lambda _, parameter: parameter.data)
    slots = make_param_states(ready.model, plan, ready.optimizer)
    scheduler = given.lr_scheduler
    if ready.optimizer is not None and scheduler is None and ready.settings.scheduler is not None:
        scheduler = build_schedule(ready.settings.scheduler, ready.optimizer)
    elif ready.optimizer is not None and callable(scheduler) and not hasattr(scheduler, "step"):
        scheduler = scheduler(ready.optimizer)
    loader = None
    if given.training_data is not None:
        loader = make_loader(
            given.training_data, ready.settings, len(layout.tp_groups) or mesh.dp.size, mesh.data_index, collate_fn
        )
    engine = Engine(ready.model, ready.decision, plan, mesh, ready.settings, slots, ready.optimizer, scheduler, device)
    records.consume_call(ready.model)
    return engine, ready.optimizer, loader, scheduler
