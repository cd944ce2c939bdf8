"""Start a run: prepare on each rank, compare the ranks, create the groups, apply the plan, build the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tpinit.reference.errors import TpinitError
from tpinit.runtime.errors import UnsupportedError
from tpinit.runtime.groups import world
from tpinit.runtime.groups.agreement import (
    RankReport,
    check_replicas,
    check_reports,
    describe_error,
    gather_reports,
)
from tpinit.runtime.groups.device_check import agree_on_devices
from tpinit.runtime.groups.devices import DeviceChoice, choose_device
from tpinit.runtime.groups.process_groups import GroupLayout, ParallelGroups, create_groups, plan_groups
from tpinit.runtime.init.apply import apply_plan
from tpinit.runtime.init.call_registry import consume_call
from tpinit.runtime.init.prepare import InitArgs, Prepared, prepare
from tpinit.runtime.init.verify import VERIFY_MODES, verify_plan
from tpinit.runtime.loading.weight_loading import WeightSource, load_weights
from tpinit.runtime.parallel import gather_logits_always
from tpinit.runtime.settings import TORCH_DTYPES, Settings
from tpinit.runtime.training.data import make_loader
from tpinit.runtime.training.engine import Engine
from tpinit.runtime.training.optimizer_kinds import OptimizerKind
from tpinit.runtime.training.optimizer_step import OptimizerStep
from tpinit.runtime.training.param_state import make_param_states
from tpinit.runtime.training.schedules import build_schedule
from tpinit.runtime.training.zero_updates import share_updates

__all__ = ["PORT", "Started", "launch"]

_log = logging.getLogger("tpinit")

PORT = 29500  # the default of DeepSpeed and of torchrun
Started = tuple[Engine, Optimizer | None, DataLoader[Any] | None, Any]


def launch(
    init_args: InitArgs,
    *,
    distributed_port: int,
    dist_init_required: bool | None,
    collate_fn: Callable[..., Any] | None,
    verify: str | None = "auto",
    open_weights: Callable[[], WeightSource] | None = None,
) -> Started:
    """Do what `initialize` documents.

    `open_weights` builds the model on the meta device and returns it with the source of its weights, which are read
    after the ranks agreed; without it `init_args` has the model.
    """
    if verify is not None and verify not in VERIFY_MODES:
        raise TpinitError(f"verify is {verify!r}, and must be None or one of {', '.join(VERIFY_MODES)}")
    for name in ("sequence_parallel", "gather_logits"):
        if type(getattr(init_args, name)) is not bool:
            raise TpinitError(f"{name} is {getattr(init_args, name)!r}, and must be True or False")
    timeout = world.read_timeout(init_args.timeout)
    model = init_args.model if isinstance(init_args.model, nn.Module) else None
    world.start(distributed_port, dist_init_required, timeout, model)
    choice = agree_on_devices(lambda: choose_device(model, init_args.mesh_param), init_args.sequence_parallel)
    init_args, prepared, reports = _prepare_and_compare(init_args, open_weights, choice.device)
    layout = plan_groups(
        prepared.decision, [report.tp_ranks for report in reports], [report.dp_ranks for report in reports]
    )
    if not check_replicas(reports, layout.dp_groups) and prepared.settings.clipping:
        raise UnsupportedError(
            "row 2: the DP groups hold different models, and a gradient norm over different models is not implemented: "
            "set gradient_clipping to 0"
        )
    _log_notes(prepared.settings)
    groups = create_groups(layout, prepared.decision, dist.get_rank(), timeout)
    if verify in ("auto", "probe"):
        verify_plan(prepared.model, prepared.plan, groups, choice.device, verify, init_args.example)
    return _build_engine(prepared, init_args, layout, groups, choice, collate_fn)


def _prepare_and_compare(
    init_args: InitArgs, open_weights: Callable[[], WeightSource] | None, device: torch.device
) -> tuple[InitArgs, Prepared, list[RankReport]]:
    """Prepare on this rank and compare its report with those of all ranks. Raises on all ranks if one rank failed."""
    report = RankReport()
    prepared: Prepared | None = None
    failure: Exception | None = None
    try:
        if open_weights is not None:
            weights = open_weights()
            init_args = replace(init_args, model=weights.model, weights=weights)
        prepared = prepare(init_args, report, device)
    except Exception as error:  # any error: the other ranks wait for this rank's report
        failure = error
        report.error = describe_error(error)
    reports = gather_reports(report)
    check_reports(reports)
    if failure is not None:
        raise failure
    assert prepared is not None
    return init_args, prepared, reports


def _log_notes(settings: Settings) -> None:
    """Log, on rank 0, what the config has and the run does otherwise or not at all."""
    if dist.get_rank() == 0:
        for note in settings.notes:
            _log.log(logging.WARNING if note.changes_training else logging.INFO, "config: %s", note.text)


def _build_engine(
    prepared: Prepared,
    init_args: InitArgs,
    layout: GroupLayout,
    groups: ParallelGroups,
    choice: DeviceChoice,
    collate_fn: Callable[..., Any] | None,
) -> Started:
    """Shard the model and build the parameter states, the schedule, the data loader and the engine."""
    device = choice.device
    model, optimizer, settings = prepared.model, prepared.optimizer, prepared.settings
    plan = replace(prepared.plan, tp_rank=groups.tp.position)
    dtype = TORCH_DTYPES[prepared.decision.dtype.value] if prepared.decision.dtype.value is not None else None
    if init_args.weights is None:
        apply_plan(model, plan, groups.tp.group, dtype, device)
    else:
        load_weights(init_args.weights, plan, layout.dp_groups, dtype)
        # Every parameter already holds its part in the right dtype: only the modules are left to convert.
        apply_plan(model, plan, groups.tp.group, None, device, lambda _, parameter: parameter.data)
    if init_args.gather_logits:
        gather_logits_always(model)
    states = make_param_states(model, plan, optimizer)
    optimizer_step = None
    if optimizer is not None:
        kind = prepared.optimizer_kind or OptimizerKind.ELEMENTWISE
        optimizer_step = OptimizerStep(optimizer, states, groups, kind)
        if settings.zero_stage:
            share_updates(optimizer, states, groups.dp)
    scheduler = init_args.lr_scheduler
    if optimizer is not None and scheduler is None and settings.scheduler is not None:
        scheduler = build_schedule(settings.scheduler, optimizer)
    elif optimizer is not None and callable(scheduler) and not hasattr(scheduler, "step"):
        scheduler = scheduler(optimizer)
    loader = None
    if init_args.training_data is not None:
        replicas = len(layout.tp_groups) or groups.dp.size
        loader = make_loader(init_args.training_data, settings, replicas, groups.data_index, collate_fn)
    engine = Engine(
        model,
        decision=prepared.decision,
        plan=plan,
        groups=groups,
        settings=settings,
        param_states=states,
        optimizer_step=optimizer_step,
        lr_scheduler=scheduler,
        device_choice=choice,
        checks=prepared.checks,
        config=prepared.config,
        training_dataloader=loader,
    )
    consume_call(model)
    return engine, optimizer, loader, scheduler
