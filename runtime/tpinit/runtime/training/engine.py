"""The engine: forward, backward and step, with gradient accumulation, averaging, clipping and loss scaling."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.process_groups import ParallelGroups
from tpinit.runtime.parallel.forward_scope import scope_of
from tpinit.runtime.planning.schema import Plan
from tpinit.runtime.settings import Checks, Settings
from tpinit.runtime.training.call_check import CallCheck, watch_calls
from tpinit.runtime.training.call_guards import guard_calls
from tpinit.runtime.training.engine_names import missing_name
from tpinit.runtime.training.gradients import GradientNorm, average, global_norm, scale, sum_partial
from tpinit.runtime.training.loss_scaler import LossScaler
from tpinit.runtime.training.param_state import ParamState
from tpinit.runtime.training.replica_check import ReplicaCheck
from tpinit.runtime.training.unusable_gradients import nonfinite_error, raise_unequal_gradients
from tpinit.spec.vocabulary import Decision

__all__ = ["Engine"]

_log = logging.getLogger("tpinit")


class Engine:
    """A model in training, as `initialize` returns it.

    `module` is the user's own model, sharded in place; `plan` has a record for each parameter; `decision` is the
    resolved contract; `groups` are this rank's process groups. The training loop calls, for every micro batch,
    `loss = engine(**batch).loss; engine.backward(loss); engine.step()`.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        decision: Decision,
        plan: Plan,
        groups: ParallelGroups,
        settings: Settings,
        param_states: list[ParamState],
        optimizer: Optimizer | None,
        lr_scheduler: Any,
        device: torch.device,
        checks: Checks | None = None,
    ) -> None:
        self.module = module
        self.decision = decision
        self.plan = plan
        self.groups = groups
        self.settings = settings
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.device = device
        self.micro_steps = 0
        self.global_steps = 0
        self.skipped_steps = 0
        self._param_states = param_states
        fp16 = any(state.parameter.dtype is torch.float16 for state in param_states)
        self._scaler = LossScaler(settings.scaling, fp16)
        self._norm: torch.Tensor | None = None
        self._losses: list[torch.Tensor] = []  # of the micro batches since the last update
        self._bad_loss = torch.zeros((), dtype=torch.bool, device=device)  # one of them is NaN or infinite
        self._awaits_step = False  # backward was called, and step not yet
        self._checks = checks if checks is not None else Checks()
        self._call_check = CallCheck(groups.tp, device, self._checks.inputs_every, groups.data_index)
        watch_calls(module, self._call_check)
        if groups.tp.group is not None:
            guard_calls(module, plan, groups.tp, self._call_check, groups.tp.position == 0 and groups.data_index == 0)
        self._replica_check = ReplicaCheck(module, param_states, groups, self._checks.replicas_every)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's forward on this rank's batch.

        All ranks of a TP group must pass the same batch, and call the model together. Before each forward they compare
        their inputs, and raise AgreementError on all ranks of the group if they differ (`check_inputs_every` of
        `initialize`). `engine.module(...)` and `engine.module.generate(...)` compare in the same way.
        """
        scope = scope_of(self.module)
        if scope is not None and scope.active:
            scope.reset()  # the last forward was interrupted
        return self.module(*args, **kwargs)

    forward = __call__

    def backward(self, loss: torch.Tensor, retain_graph: bool = False, scale_wrt_gas: bool = True) -> torch.Tensor:
        """Add the gradients of a scalar loss; at an accumulation boundary, average them over the data-parallel ranks.

        Returns the loss, divided by the number of accumulation steps unless `scale_wrt_gas` is false. Raises
        EngineError if there is no optimizer, or if `step` was not called after the previous backward.
        """
        if self.optimizer is None:
            raise EngineError("backward needs an optimizer: name one in the config or pass one to initialize")
        if self._awaits_step:
            raise EngineError("backward was called twice without step between: call engine.step() after each backward")
        self._losses.append(loss.detach())
        self._bad_loss = self._bad_loss | ~torch.isfinite(loss.detach()).all().to(self.device)
        scaled = loss / self.settings.batch.accumulation if scale_wrt_gas else loss
        (scaled * self._scaler.scale if self._scaler.active else scaled).backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        for state in self._param_states:
            state.accumulate()
        if self.is_gradient_accumulation_boundary():
            sum_partial(self._param_states, self.groups.tp, self.device)
            self._bad_loss = average(self._param_states, self.groups.dp, self.device, self._bad_loss)
        self._awaits_step = True
        return scaled.detach()

    def step(self) -> None:
        """End a micro batch; at an accumulation boundary clip, update, advance the schedule and drop the gradients.

        An fp16 update whose gradients overflow is skipped on every rank, and the loss scale may be halved. Raises
        EngineError if `backward` was not called since the last step, and, on all ranks, for a loss or a gradient norm
        that is NaN or infinite (`on_nonfinite` of `initialize`). Raises AgreementError on all ranks of a TP group if
        their gradients of replicated parameters differ. Nothing is updated then, and the gradients are dropped.
        After every so many updates the ranks compare the copies of their parameters (`check_replicas_every`), and raise
        AgreementError if they differ.
        """
        if not self._awaits_step:
            raise EngineError("step was called without a backward before it")
        boundary = self.is_gradient_accumulation_boundary()
        try:
            if boundary:
                self._update()
        finally:
            self._awaits_step = False
            self.micro_steps += 1
            if boundary:
                self.zero_grad()

    def _update(self) -> None:
        assert self.optimizer is not None
        norm = global_norm(self._param_states, self.groups.tp, self.device, self._bad_loss)
        skipped = self._must_skip(norm)
        if skipped:
            self.skipped_steps += 1
        else:
            if self._scaler.active or self.settings.clipping:
                self._clip(norm.norm() / self._scaler.scale)
            self.optimizer.step()
            for state in self._param_states:
                state.copy_back()
            if self.lr_scheduler is not None:
                self.lr_scheduler.step()
        self._norm = norm.norm() / self._scaler.scale
        self.global_steps += 1
        self._call_check.step = self.global_steps
        self._scaler.update(skipped)
        self._replica_check.after(self.global_steps)

    def _must_skip(self, norm: GradientNorm) -> bool:
        """Return whether this update is skipped. Raises on all ranks for gradients that can't be used."""
        finite, agree = norm.read()
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
            factor = factor * (self.settings.clipping / (norm + 1e-6)).clamp(max=1.0)
        scale(self._param_states, factor)

    def zero_grad(self) -> None:
        """Drop every gradient."""
        self._losses.clear()
        self._bad_loss = torch.zeros_like(self._bad_loss)
        for state in self._param_states:
            state.parameter.grad = None
            state.target.grad = None

    def is_gradient_accumulation_boundary(self) -> bool:
        """Return whether the current micro batch is the last one before an update."""
        return (self.micro_steps + 1) % self.settings.batch.accumulation == 0

    def get_global_grad_norm(self) -> float | None:
        """Return the 2-norm of the whole model's gradient at the last update, before clipping; None before any."""
        return None if self._norm is None else float(self._norm)

    def train(self, mode: bool = True) -> Engine:
        """Put the model in training mode, or in evaluation mode."""
        self.module.train(mode)
        return self

    def eval(self) -> Engine:
        """Put the model in evaluation mode."""
        return self.train(False)

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        return self.module.training

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Iterate over the model's local parameters."""
        return self.module.parameters(recurse)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over the model's local parameters by name."""
        return self.module.named_parameters()

    @property
    def loss_scale(self) -> float:
        """The factor by which an fp16 loss is multiplied; 1 for other dtypes."""
        return self._scaler.scale

    def get_lr(self) -> list[float]:
        """Return the learning rate of each parameter group; empty without an optimizer."""
        return [group["lr"] for group in self.optimizer.param_groups] if self.optimizer is not None else []

    def __getattr__(self, name: str) -> Any:
        """Raise for a name that the engine lacks: what is DeepSpeed's is refused with what to do instead."""
        raise missing_name(name, [known for known in dir(type(self)) if not known.startswith("_")])

    def train_batch_size(self) -> int | None:
        """Return the number of samples in one update over all ranks; None without a batch size."""
        return self.settings.batch.train

    def train_micro_batch_size_per_gpu(self) -> int | None:
        """Return the number of samples in a micro batch of one data-parallel rank; None without a batch size."""
        return self.settings.batch.micro

    def gradient_accumulation_steps(self) -> int:
        """Return the number of micro batches in one update."""
        return self.settings.batch.accumulation
