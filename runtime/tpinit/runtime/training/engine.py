"""The engine: forward, backward and step, with gradient accumulation, averaging, clipping and loss scaling."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakSet

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups import world
from tpinit.runtime.groups.devices import DeviceChoice
from tpinit.runtime.groups.process_groups import ParallelGroups, free_groups
from tpinit.runtime.internals.torch_private import child_of
from tpinit.runtime.parallel.forward_scope import scope_of
from tpinit.runtime.planning.schema import Plan
from tpinit.runtime.settings import Checks, Settings
from tpinit.runtime.training.backward_checks import check_backward
from tpinit.runtime.training.call_check import CallCheck, watch_calls
from tpinit.runtime.training.call_guards import guard_calls, guard_engine, write_once
from tpinit.runtime.training.clipping import clip_factor
from tpinit.runtime.training.compile_guard import compile_engine
from tpinit.runtime.training.data import EndlessBatches
from tpinit.runtime.training.engine_answers import METHODS, VALUES
from tpinit.runtime.training.engine_names import NOT_ON_THE_ENGINE, missing_name
from tpinit.runtime.training.engine_norms import before_norm
from tpinit.runtime.training.exit_signal import exit_if_signalled, settle
from tpinit.runtime.training.first_step import FirstStep
from tpinit.runtime.training.gradients import GradientNorm, scale
from tpinit.runtime.training.input_devices import explained
from tpinit.runtime.training.loss_scaler import LossScaler
from tpinit.runtime.training.optimizer_kinds import OptimizerKind, group_options
from tpinit.runtime.training.optimizer_state import mark_optimizer_state
from tpinit.runtime.training.optimizer_step import OptimizerStep
from tpinit.runtime.training.param_state import ParamState, fp32_gradients
from tpinit.runtime.training.replica_check import ReplicaCheck
from tpinit.runtime.training.sharded_tensors import ShardedTensors
from tpinit.runtime.training.shared_generate import share_generate
from tpinit.runtime.training.torch_functions import recognize_sharded_tensors
from tpinit.runtime.training.tree_check import TreeCheck
from tpinit.runtime.training.unusable_gradients import nonfinite_error, raise_unequal_gradients, unequal_losses
from tpinit.runtime.training.zero_updates import owners_of
from tpinit.spec.vocabulary import Decision

__all__ = ["Engine"]

_log = logging.getLogger("tpinit")
_PREFIX = "module."
_LIVING: WeakSet[Engine] = WeakSet()  # not destroyed yet


def _of_module(name: str) -> Callable[..., Engine]:
    """Return a method that calls the method `name` of the model, which guards it, and returns the engine."""

    def call(self: Engine, *args: Any, **kwargs: Any) -> Engine:
        getattr(self.module, name)(*args, **kwargs)
        return self

    return call


class Engine(nn.Module):
    """A model in training, as `initialize` returns it.

    `module` is the user's own model, sharded in place; `plan` has a record for each parameter; `decision` is the
    resolved contract; `groups` are this rank's process groups; `config` is the config that was read. For every micro
    batch call `loss = engine(**batch).loss; engine.backward(loss); engine.step()`.

    As DeepSpeed's engine, it is a torch.nn.Module whose only child is `module`: its names of parameters begin with
    "module.", and an attribute that it lacks is that of the model (`engine.generate`).
    """

    groups: ParallelGroups
    settings: Settings

    def __init__(
        self,
        module: nn.Module,
        *,
        decision: Decision,
        plan: Plan,
        groups: ParallelGroups,
        settings: Settings,
        param_states: list[ParamState],
        optimizer_step: OptimizerStep | None,
        lr_scheduler: Any,
        device_choice: DeviceChoice,
        checks: Checks | None = None,
        config: Mapping[str, Any] | None = None,
        training_dataloader: DataLoader[Any] | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.decision = decision
        self.plan = plan
        self.groups = groups
        self.settings = settings
        self.optimizer: Optimizer | None = optimizer_step.optimizer if optimizer_step is not None else None
        self.lr_scheduler = lr_scheduler
        self.device_choice = device_choice
        device = self.device = device_choice.device
        self.config = dict(config or {})
        self.training_dataloader = training_dataloader
        self.batches = EndlessBatches(training_dataloader) if training_dataloader is not None else None
        self.micro_steps = self.global_steps = self.skipped_steps = self.global_samples = 0
        self._param_states = param_states
        self._tensors = ShardedTensors(param_states, groups, device, settings.averaging)
        self._hooks = self._tensors.hooks
        self._hooks.buckets.owners = owners_of(self.optimizer) if settings.zero_stage > 1 else None
        self._optimizer_step = optimizer_step
        fp16 = any(state.parameter.dtype is torch.float16 for state in param_states)
        self._scaler = LossScaler(settings.scaling, fp16)
        self._norm: torch.Tensor | None = None
        self._losses: list[torch.Tensor] = []  # of the micro batches since the last update
        self._bad_loss = torch.zeros((), dtype=torch.bool, device=device)  # one of them is NaN or infinite
        self._awaits_step = False  # backward was called, and step not yet
        self._boundary: bool | None = None  # set by the caller; None: every `accumulation` micro batches
        self._synchronizes = True  # False inside no_sync
        self._reduced = False  # the gradients are sums and means over ranks already
        self.step_applied = False  # the last call of `step` changed the parameters
        self._checks = checks if checks is not None else Checks()
        self._call_check = CallCheck(groups, device, self._checks.inputs_every)
        self._first_step: FirstStep | None = None
        recognize_sharded_tensors()  # before the functions of torch are compared with what they were
        self._guard()
        _LIVING.add(self)
        self._replica_check = ReplicaCheck(module, param_states, groups, self._checks.replicas_every)
        self._tensors.attach(module)
        self._tensors.optimizer, self._tensors.before_norm = self.optimizer, partial(before_norm, self)
        self._tensors.meet = partial(self._call_check.meet, model=module)
        if optimizer_step is not None:
            optimizer_step.by_hand = self._update_by_hand

    def _guard(self) -> None:
        """Let the model compare its calls over the TP group, and refuse those that would give or take parts."""
        module, plan, tp, step = self.module, self.plan, self.groups.tp, self._optimizer_step
        watch_calls(module, self._call_check)
        share_generate(module, self._call_check)
        if tp.group is None:
            write_once(module, self.groups.data_index)
        if tp.group is not None:
            guard_calls(module, plan, tp, self._call_check, self.groups.data_index == 0)
            guard_engine(self, module)
            if step is not None:
                mark_optimizer_state(
                    step.optimizer, self._param_states, plan, tp, step.kind is OptimizerKind.ELEMENTWISE
                )
            self._call_check.tree = TreeCheck(plan, module)
            self._first_step = FirstStep(module, plan, tp, trains=step is not None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's forward on this rank's batch.

        All ranks of a TP group must pass the same batch, and call the model together. Before each forward they compare
        their inputs, and raise AgreementError on all ranks of the group if they differ (`check_inputs_every` of
        `initialize`). `engine.module(...)` and `engine.module.generate(...)` compare in the same way.
        """
        scope = scope_of(self.module)
        if scope is not None and scope.active:
            scope.reset()  # the last forward was interrupted
        try:
            return self.module(*args, **kwargs)
        except RuntimeError as error:
            explanation = explained(error, self.module, self.device, args, kwargs)
            if explanation is None:
                raise
            raise explanation from error

    def backward(self, loss: torch.Tensor, retain_graph: bool = False, scale_wrt_gas: bool = True) -> torch.Tensor:
        """Add the gradients of a scalar loss; at an accumulation boundary, average them over the data-parallel ranks.

        With ZeRO 2 at each of them. Several calls before one `step` add up. Returns the loss, divided by the number of
        accumulation steps unless `scale_wrt_gas` is false. Raises what `check_backward` does.
        """
        check_backward(self, loss)
        self._losses.append(loss.detach())
        self._bad_loss = self._bad_loss | ~torch.isfinite(loss.detach()).all().to(self.device)
        scaled = loss / self.settings.batch.accumulation if scale_wrt_gas else loss
        sends = self._synchronizes and (self._hooks.owns_gradients() or self.is_gradient_accumulation_boundary())
        self._reduced = False
        with self._hooks.paused(sends):
            (scaled * self._scaler.scale if self._scaler.active else scaled).backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        if sends:
            self._bad_loss = self._hooks.reduce(self._bad_loss)
            self._reduced = True
        self._hooks.show()
        self._awaits_step = True
        return scaled.detach()

    def step(self, lr_kwargs: Mapping[str, Any] | None = None) -> None:
        """End a micro batch; at an accumulation boundary clip, update, advance the schedule and drop the gradients.

        `lr_kwargs` are passed to the schedule's `step`. An fp16 update whose gradients overflow is skipped on every
        rank, and the loss scale may be halved. Raises EngineError if `backward` was not called since the last step,
        inside `no_sync`, and, on all ranks, for a loss or a gradient norm that is NaN or infinite (`on_nonfinite` of
        `initialize`). Raises AgreementError on all ranks of a TP group if their gradients of replicated parameters
        differ. Nothing is updated then, and the gradients are dropped. Behind an update the ranks may compare copies of
        their parameters (`check_replicas_every`: AgreementError), and end (`exit_on_signal`: TrainingStopped).
        """
        self._call_check.check_alive("step")
        if not self._synchronizes:
            raise EngineError("step was called inside no_sync: call it behind the with block")
        if not self._awaits_step:
            raise EngineError("step was called without a backward before it")
        boundary = self.is_gradient_accumulation_boundary()
        if boundary and not self._reduced:
            raise EngineError(
                "step at an accumulation boundary needs gradients that are averaged: call the last backward outside "
                "no_sync, and after set_gradient_accumulation_boundary(True)"
            )
        self.step_applied = False
        try:
            if boundary:
                self._update(lr_kwargs or {})
                self.global_samples += self.settings.batch.train or 0
        finally:
            self._awaits_step = False
            self.micro_steps += 1
            if boundary:
                self.zero_grad()
        if boundary:
            exit_if_signalled(self)

    def _update(self, lr_kwargs: Mapping[str, Any]) -> None:
        assert self._optimizer_step is not None
        self._call_check.meet("step", self.module, group_options(self._optimizer_step.optimizer))
        if self._first_step is not None:
            self._first_step.before_update()
        self._hooks.unmark()
        for state in self._param_states:
            state.take_grad()
        norm = self._hooks.norm(self._bad_loss, self._losses)
        skipped = self._must_skip(norm)
        self.skipped_steps += skipped
        if not skipped:
            if self._scaler.active or self.settings.clipping:
                self._clip(norm.norm() / self._scaler.scale)
            self._optimizer_step.update()
            if self.lr_scheduler is not None:
                self.lr_scheduler.step(**lr_kwargs)
            self.step_applied = True
        self._scaler.update(skipped)
        self._count_update(norm.norm() / self._scaler.scale)

    def _update_by_hand(self, update: Callable[[], Any]) -> Any:
        """Call `update` for an `optimizer.step()` of the user, after the checks of `step`, and return its result."""
        if self._reduced or self._hooks.addends:
            raise EngineError(
                "optimizer.step() was called after engine.backward(loss): call engine.step(), which calls it; or call "
                "loss.backward() instead of engine.backward(loss), and engine.zero_grad() before the change"
            )
        assert self._optimizer_step is not None
        options = group_options(self._optimizer_step.optimizer)
        self._call_check.compare_call("optimizer.step", self.module, options=options)
        if self._first_step is not None:
            self._first_step.before_update()
        with self._hooks.unmarked(), fp32_gradients(self._param_states):
            norm = self._hooks.norm()
            skipped = self._must_skip(norm)
            result = None if skipped else update()
        if float(norm.norm()):  # torch.distributed.checkpoint makes a step of zero gradients to have a state
            self.skipped_steps += skipped
            self._count_update(norm.norm())
        return result

    def _count_update(self, norm: torch.Tensor) -> None:
        self._norm = vars(self.optimizer)["_global_grad_norm"] = norm  # there, DeepSpeed's callers read it
        self.global_steps += 1
        self._call_check.step = self.global_steps
        self._replica_check.after(self.global_steps)

    def _must_skip(self, norm: GradientNorm) -> bool:
        """Return whether this update is skipped. Raises on all ranks for gradients that can't be used."""
        finite, agree, losses_agree = norm.read()
        if not losses_agree:
            raise unequal_losses(self._losses, self.groups.tp, self.global_steps)
        if not agree:
            raise_unequal_gradients(self._param_states, self.groups.tp, self.global_steps)
        if finite or self._scaler.active:
            return not finite
        if self._checks.on_nonfinite == "raise":
            raise nonfinite_error(self._param_states, self._losses, self.groups, self.global_steps)
        if self._checks.on_nonfinite == "skip":
            _log.warning("step %d is skipped: a loss or the gradient norm is NaN or infinite", self.global_steps)
        return self._checks.on_nonfinite == "skip"

    def _clip(self, norm: torch.Tensor) -> None:
        factor = torch.ones_like(norm) / self._scaler.scale
        if self.settings.clipping:
            factor = factor * clip_factor(norm, self.settings.clipping)
        scale(self._param_states, factor)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop every gradient, or set it to zero."""
        self._losses.clear()
        self._bad_loss = torch.zeros_like(self._bad_loss)
        self._reduced = False
        self._hooks.drop()
        for state in self._param_states:
            state.drop_grad(set_to_none)

    def is_gradient_accumulation_boundary(self) -> bool:
        """Return whether the current micro batch is the last one before an update."""
        if self._boundary is not None:
            return self._boundary
        return (self.micro_steps + 1) % self.settings.batch.accumulation == 0

    def set_gradient_accumulation_boundary(self, is_boundary: bool | None) -> None:
        """Say whether the next backward is the last one before an update; None counts the calls of `step` again."""
        self._boundary = None if is_boundary is None else bool(is_boundary)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Let `backward` only add gradients on this rank: the next one outside reduces them all over the ranks."""
        if not self._synchronizes:
            raise EngineError("no_sync was entered twice: leave the first with block before")
        self._synchronizes = False
        try:
            yield
        finally:
            self._synchronizes = True

    def train(self, mode: bool = True) -> Engine:
        """Put the model in training mode, or in evaluation mode."""
        self.module.train(mode)
        return self

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        return getattr(child_of(self, "module"), "training", True)

    @training.setter
    def training(self, mode: bool) -> None:
        if (module := child_of(self, "module")) is not None:  # torch sets the mode before there is a model
            module.training = mode

    if not TYPE_CHECKING:  # their types are those of nn.Module
        compile = compile_engine
        to, cpu, cuda, half, bfloat16, float, double, type, to_empty, share_memory = map(
            _of_module, ("to", "cpu", "cuda", "half", "bfloat16", "float", "double", "type", "to_empty", "share_memory")
        )

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load what `state_dict` returned, or a state dict of the whole model under such names."""
        foreign = [name for name in state_dict if not name.startswith(_PREFIX)]
        if foreign:
            raise EngineError(
                f"engine.load_state_dict: the name {foreign[0]} does not begin with {_PREFIX!r}, as those of "
                "engine.state_dict() do; give a state dict of the model to engine.module.load_state_dict"
            )
        return self.module.load_state_dict(
            {name.removeprefix(_PREFIX): value for name, value in state_dict.items()}, *args, **kwargs
        )

    def __deepcopy__(self, _: dict[int, Any]) -> NoReturn:
        """Refuse a copy: the copied optimizer would update the parameters of this model."""
        raise EngineError("an engine can't be copied: copy.deepcopy(engine.module) copies the sharded model")

    def __reduce_ex__(self, _: Any) -> NoReturn:
        """Refuse pickling: an engine holds process groups."""
        raise EngineError("an engine can't be pickled: call engine.module.save_pretrained(folder) on every rank")

    def destroy(self) -> None:
        """Free the process groups that were made for this engine; all ranks must call this. It then refuses to run.

        The world is destroyed too if `initialize` started it and no other engine uses it.
        """
        settle(self)
        if not self._call_check.destroyed:
            self._call_check.destroyed = True
            free_groups(self.groups)
            _LIVING.discard(self)
            if not _LIVING:
                world.end()

    def __getattr__(self, name: str) -> Any:
        """Return the model's attribute. Raises for a name that both lack: for DeepSpeed's with what to do instead."""
        module = child_of(self, "module")
        if module is not None:
            if name == "module":
                return module
            if name in VALUES:
                return VALUES[name](self)
            if name in METHODS:
                return partial(METHODS[name], self)
        if name not in NOT_ON_THE_ENGINE and not name.startswith("__") and hasattr(module, name):
            return getattr(module, name)
        raise missing_name(name, [known for known in dir(self) if not known.startswith("_")])

    def __dir__(self) -> list[str]:
        """Return the names of the engine, without the model's."""
        return sorted({*object.__dir__(self), *VALUES, *METHODS})
