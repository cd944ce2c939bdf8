"""Start a run: prepare on each rank, compare the ranks, create the groups, apply the plan, build the engine."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tpinit.reference.errors import TpinitError
from tpinit.reference.spellings import show
from tpinit.runtime.checkpoint.ranks import checkpoint_group
from tpinit.runtime.errors import UnsupportedError
from tpinit.runtime.groups import world
from tpinit.runtime.groups.agreement import RankReport, check_replicas, check_reports
from tpinit.runtime.groups.communicators import check_names
from tpinit.runtime.groups.device_check import device_step, use_device
from tpinit.runtime.groups.devices import DeviceChoice, choose_device
from tpinit.runtime.groups.issuing import connect_recorders
from tpinit.runtime.groups.process_groups import GroupLayout, ParallelGroups, create_groups, free_groups, plan_groups
from tpinit.runtime.groups.protocol import Steps, run
from tpinit.runtime.init.apply import apply_plan
from tpinit.runtime.init.call_registry import consume_call
from tpinit.runtime.init.compared import argument_fields, environment_fields
from tpinit.runtime.init.prepare import InitArgs, Prepared, prepare
from tpinit.runtime.init.rehearse import copy_to_rehearse
from tpinit.runtime.init.start import start
from tpinit.runtime.init.verify import VERIFY_MODES, Probe, probe_steps
from tpinit.runtime.loading.weight_loading import WeightSource, load_weights
from tpinit.runtime.parallel import broadcast_rng_state, gather_logits_always
from tpinit.runtime.planning import Plan
from tpinit.runtime.planning.analysis.known_code import look_once
from tpinit.runtime.planning.check.rehearsal import Rehearsal
from tpinit.runtime.settings import TORCH_DTYPES, Settings
from tpinit.runtime.training.data import make_loader
from tpinit.runtime.training.engine import Engine
from tpinit.runtime.training.optimizer_kinds import OptimizerKind
from tpinit.runtime.training.optimizer_step import OptimizerStep
from tpinit.runtime.training.param_state import make_param_states
from tpinit.runtime.training.path_check import watch_paths
from tpinit.runtime.training.schedules import build_schedule
from tpinit.runtime.training.zero_updates import share_updates

__all__ = ["PORT", "Started", "launch"]

_log = logging.getLogger("tpinit")

_runs = itertools.count(1)  # the runs that this process started, as all others
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
    model = init_args.model if isinstance(init_args.model, nn.Module) else None
    launcher = {"distributed_port": distributed_port, "dist_init_required": dist_init_required}
    rank = _Rank(init_args, launcher, verify, collate_fn, open_weights)
    try:
        timeout = world.read_timeout(init_args.timeout)
    except TpinitError:  # of this rank, perhaps: it is raised again where the others learn of it
        timeout = None
    try:
        world.start(distributed_port, dist_init_required, timeout, model)
    except TpinitError:
        rank.check_arguments()  # there is no other rank to tell
        raise
    try:
        with look_once():
            return run(start(rank))
    except BaseException:
        rank.free_groups()
        raise


class _Rank:
    """The steps of a real rank: see `RankSteps`."""

    _choice: DeviceChoice
    _prepared: Prepared
    _layout: GroupLayout
    _groups: ParallelGroups
    _run: int
    _rehearsal: Rehearsal | None = None
    _timeout: timedelta | None = None

    def __init__(
        self,
        init_args: InitArgs,
        launcher: Mapping[str, Any],
        verify: str | None,
        collate_fn: Callable[..., Any] | None,
        open_weights: Callable[[], WeightSource] | None,
    ) -> None:
        self._args = init_args
        self._launcher = launcher
        self._verify = verify
        self._collate_fn = collate_fn
        self._open_weights = open_weights

    def free_groups(self) -> None:
        """Free the process groups of a run that could not be started."""
        if "_groups" in vars(self):
            free_groups(self._groups)

    def choose_device(self) -> Steps[None]:
        """Check the arguments that need no model, and choose the device."""

        def choose(report: RankReport) -> DeviceChoice:
            own = {field.name: getattr(self._args, field.name) for field in fields(self._args)}
            report.fields.update(environment_fields())
            report.fields.update(
                argument_fields({**own, **self._launcher, "verify": self._verify, "collate_fn": self._collate_fn})
            )
            self.check_arguments()
            model = self._args.model if isinstance(self._args.model, nn.Module) else None
            return choose_device(model, self._args.mesh_param)

        self._choice = yield from device_step(choose)

    def check_arguments(self) -> None:
        """Raise TpinitError for an argument that is illegal whatever the model is."""
        if self._verify is not None and self._verify not in VERIFY_MODES:
            raise TpinitError(f"verify is {show(self._verify)}, and must be None or one of {', '.join(VERIFY_MODES)}")
        for name in ("sequence_parallel", "gather_logits"):
            if type(getattr(self._args, name)) is not bool:
                raise TpinitError(f"{name} is {show(getattr(self._args, name))}, and must be True or False")
        self._timeout = world.read_timeout(self._args.timeout)

    def prepare(self, report: RankReport) -> None:
        """Make the device current; open the checkpoint; then do what `prepare` says."""
        use_device(self._choice, self._args.sequence_parallel)
        if self._open_weights is not None:
            weights = self._open_weights()
            self._args = replace(self._args, model=weights.model, weights=weights)
        self._prepared = prepare(self._args, report, self._choice.device)

    def lay_out(self, reports: Sequence[RankReport]) -> None:
        """Derive the groups, and raise GroupError or AgreementError if they don't fit, or are not the same ones."""
        self._run = next(_runs)  # here, where every rank comes or none
        decision, settings = self._prepared.decision, self._prepared.settings
        layout = plan_groups(decision, [report.tp_ranks for report in reports], [report.dp_ranks for report in reports])
        if layout.tp_given:
            check_names("the TP group", layout.tp_groups, [report.tp_name for report in reports])
        if layout.dp_given:
            check_names("the mpu's data-parallel group", layout.dp_groups, [report.dp_name for report in reports])
        if not check_replicas(reports, layout.dp_groups) and settings.clipping:
            raise UnsupportedError(
                "row 2: the DP groups hold different models, and a gradient norm over different models is not "
                "implemented: set gradient_clipping to 0"
            )
        self._layout = layout

    def make_groups(self) -> None:
        """Try the groups that were given, make the others, and say what the config has and the run does not."""
        _log_notes(self._prepared.settings)
        connect_recorders()
        groups = create_groups(self._layout, self._prepared.decision, dist.get_rank(), self._timeout)
        self._groups = replace(groups, run=self._run)
        checkpoint_group()  # now: a rank that ends while the others make a group is noticed after their time-out only

    def probe(self) -> Steps[None]:
        """Probe the model, if `verify` or its code asks for it."""
        prepared, groups = self._prepared, self._groups
        if self._verify in ("auto", "probe") and groups.tp.group is not None:
            plan = replace(prepared.plan, tp_rank=groups.tp.position)
            probe = Probe(prepared.model, plan, groups, self._choice.device, self._verify, self._args.example)
            yield from probe_steps(probe, self._verify)

    def shard(self, report: RankReport) -> None:
        """Shard the model, or read this rank's part of its weights."""
        model, group = self._prepared.model, self._groups.tp.group
        plan, dtype, device = self._local_plan(), self._dtype(), self._choice.device
        self._rehearsal = copy_to_rehearse(model, plan, device, self._verify, self._args.example)
        if self._args.weights is None:
            apply_plan(model, plan, group, dtype, device)
        else:
            load_weights(self._args.weights, plan, self._layout.dp_groups, dtype, report)
            # Every parameter already holds its part in the right dtype: only the modules are left to convert.
            apply_plan(model, plan, group, None, device, lambda _, parameter: parameter.data)

    def check_shards(self, reports: Sequence[RankReport]) -> None:
        """Raise if a rank failed, or read other weights than the ranks that hold the same."""
        check_reports(reports, title="ranks failed or differ while the model was sharded: build a new model")
        check_replicas(reports, self._layout.dp_groups)

    def build(self) -> Started:
        """Continue with the RNG state of the TP group's first rank, and build the engine and what it holds."""
        group = self._groups.tp.group
        if group is not None:
            broadcast_rng_state(group, self._choice.device)
        started = _build_engine(
            self._prepared, self._args, self._local_plan(), self._layout, self._groups, self._choice, self._collate_fn
        )
        if self._rehearsal is not None:
            watch_paths(self._prepared.model, self._rehearsal)
        return started

    def _local_plan(self) -> Plan:
        return replace(self._prepared.plan, tp_rank=self._groups.tp.position)

    def _dtype(self) -> torch.dtype | None:
        dtype = self._prepared.decision.dtype.value
        return TORCH_DTYPES[dtype] if dtype is not None else None


def _log_notes(settings: Settings) -> None:
    """Log, on rank 0, what the config has and the run does otherwise or not at all."""
    if dist.get_rank() == 0:
        for note in settings.notes:
            _log.log(logging.WARNING if note.changes_training else logging.INFO, "config: %s", note.text)


def _build_engine(
    prepared: Prepared,
    init_args: InitArgs,
    plan: Plan,
    layout: GroupLayout,
    groups: ParallelGroups,
    choice: DeviceChoice,
    collate_fn: Callable[..., Any] | None,
) -> Started:
    """Build the parameter states, the schedule, the data loader and the engine of a model that is sharded."""
    model, optimizer, settings = prepared.model, prepared.optimizer, prepared.settings
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
