"""What happens around the `step` and `load_state_dict` of the optimizer of a sharded model.

The optimizer's groups hold the model's own Parameter objects, and its state is theirs. During a step other tensors
take their place where that is needed: fp32 master copies of bf16 and fp16 parameters, and whole tensors for an update
that is not elementwise. A master copy is in the state of its parameter, as `master_param`, from its first update on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch.optim import Optimizer
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.process_groups import ParallelGroups
from tpinit.runtime.internals.torch_private import SCALES_IN_STEP
from tpinit.runtime.training.master_copies import MASTER, hide_masters, load_masters
from tpinit.runtime.training.optimizer_kinds import OptimizerKind, class_name, classify
from tpinit.runtime.training.optimizer_trial import substituted
from tpinit.runtime.training.param_state import ParamState, adopt_edits
from tpinit.runtime.training.whole_tensors import gather_whole, keep_slices

__all__ = ["OptimizerStep"]

Update = Callable[[], Any]


class OptimizerStep:
    """The step of one optimizer over a sharded model. It replaces `step` and three other methods of the object.

    `by_hand` is what the engine does around a step that the user calls: it gets a function that updates and returns
    what the optimizer's step returned, and may raise instead of calling it.
    """

    def __init__(
        self, optimizer: Optimizer, states: Sequence[ParamState], groups: ParallelGroups, kind: OptimizerKind
    ) -> None:
        self.optimizer = optimizer
        self.kind = kind
        self.by_hand: Callable[[Update], Any] = lambda update: update()
        self._states = list(states)
        self._by_id = {id(state.parameter): state for state in states}
        self._groups = groups
        self._engine_updates = False
        self._running = False
        self._step = self._replace("step", self.run)
        self._load = self._replace("load_state_dict", self.load_state_dict)
        self._add_group = self._replace("add_param_group", self.add_param_group)
        optimizer.__dict__["__deepcopy__"] = optimizer.__dict__["__reduce_ex__"] = self._refuse_copy
        # GradScaler then unscales the gradients before the step, and does not leave that to a fused kernel.
        optimizer.__dict__[SCALES_IN_STEP] = False
        optimizer.register_step_pre_hook(self._check_entry)

    def _replace(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        """Put a function of ours in front of a method of the optimizer object; return the present one."""
        present: Callable[..., Any] = getattr(self.optimizer, name)

        @wraps(present)
        def call(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
            return own(*args, **kwargs)

        self.optimizer.__dict__[name] = MethodType(call, self.optimizer)
        return present

    def update(self) -> None:
        """Update from the targets' gradients, which are already summed, averaged and clipped."""
        self._engine_updates = True
        try:
            self.optimizer.step()
        finally:
            self._engine_updates = False

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Do what `optimizer.step(*args, **kwargs)` does.

        A closure is called once, before the update, and its result is returned. Raises EngineError for a parameter that
        is not the model's, and what `by_hand` raises.
        """
        if self._running:  # the step of a subclass calls the one of its base, or a wrapper the wrapped one
            return self._step(*args, **kwargs)
        if self._engine_updates:
            with self._substituted():
                return self._step(*args, **kwargs)
        closure = args[0] if args else kwargs.pop("closure", None)
        self._adopt_parameters()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        result = self.by_hand(lambda: self._updated(args[1:], kwargs))
        return result if closure is None else loss

    def _updated(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._substituted():
            return self._step(*((None, *args) if args else ()), **kwargs)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Do what `optimizer.add_param_group` does, for parameters that the model had at `initialize`.

        Raises EngineError for others, and if an unknown optimizer would need whole tensors with the group's options.
        """
        if isinstance(group, dict) and not isinstance(group.get("params"), (torch.Tensor, set, type(None))):
            group = {**group, "params": list(group["params"])}
            for parameter in group["params"]:
                self._state_of(parameter[1] if isinstance(parameter, tuple) else parameter, "add_param_group")
        elif isinstance(group, dict) and isinstance(group.get("params"), torch.Tensor):
            self._state_of(group["params"], "add_param_group")
        self._add_group(group)
        if self._groups.tp.group is not None and self.kind is OptimizerKind.ELEMENTWISE:
            if classify(self.optimizer) is self.kind:
                return
            self.optimizer.param_groups.pop()
            raise EngineError(
                f"add_param_group: {class_name(self.optimizer)} needs whole tensors with the options of this group, "
                "and has updated slices so far: give all groups to the optimizer before initialize"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do what `optimizer.load_state_dict` does, for the master copies too. Raises EngineError for other groups."""
        self._adopt_parameters()
        held = self._held()
        given = [len(group["params"]) for group in state_dict["param_groups"]]
        own = [len(group["params"]) for group in self.optimizer.param_groups]
        if given != own:
            raise EngineError(
                f"optimizer.load_state_dict: the groups of the state dict have {given} parameters, and the optimizer's "
                f"{own}: build the optimizer with the groups of the one that was saved"
            )
        with substituted(self.optimizer, {id(state.parameter): state.target for state in held if state.has_master}):
            self._load(state_dict)
        load_masters(self.optimizer, held)

    def _held(self) -> list[ParamState]:
        """Return the states of the parameters in the optimizer's groups, in order."""
        return [self._state_of(one, "step") for group in self.optimizer.param_groups for one in group["params"]]

    def _state_of(self, parameter: torch.Tensor, call: str) -> ParamState:
        state = self._by_id.get(id(parameter))
        if state is None:
            raise EngineError(
                f"optimizer.{call}: the groups have a parameter of shape {tuple(parameter.shape)} that is not in "
                "engine.plan: an optimizer of this model takes only parameters that engine.module had when initialize "
                "was called; give others to an optimizer of their own"
            )
        return state

    def _adopt_parameters(self) -> None:
        """Make master copies for parameters that were added, or are trained from now on."""
        for state in self._held():
            if state.parameter.requires_grad:
                state.add_master()

    @contextmanager
    def _substituted(self) -> Iterator[None]:
        """Put master copies and whole tensors in the optimizer's groups, and what became of them in the model after."""
        self._adopt_parameters()
        held, tp = self._held(), self._groups.tp
        masters = [state for state in held if state.has_master]
        adopt_edits(masters)
        known = hide_masters(self.optimizer, masters)
        sharded: list[ParamState] = []
        if self.kind is OptimizerKind.WHOLE_TENSORS and tp.group is not None:
            sharded = [state for state in held if state.record.dim is not None and state.parameter.requires_grad]
        whole = gather_whole(sharded, tp) if sharded else []
        others = {id(state.parameter): state.target for state in masters}
        others.update({id(state.parameter): parameter for state, parameter in zip(sharded, whole, strict=True)})
        updated = [state for state in masters if state.target.grad is not None or id(state) in known]
        self._running = True
        try:
            with substituted(self.optimizer, others):
                yield
        finally:
            self._running = False
            keep_slices(sharded, whole, tp)
            for state in masters:
                state.copy_back()
            for state in updated:
                self.optimizer.state[state.parameter][MASTER] = state.target.detach()

    def _check_entry(self, *_: Any) -> None:
        """Raise EngineError if the class's step was called past the object's."""
        if not self._running:
            raise EngineError(
                f"{class_name(self.optimizer)}.step was called with the optimizer as its argument: call "
                "optimizer.step(), which updates a sharded model"
            )

    def _refuse_copy(self, *_: Any) -> Any:
        raise EngineError(
            "copy.deepcopy and pickle of the optimizer of a sharded model: its step belongs to this model; copy or "
            "save optimizer.state_dict(), which holds this rank's part"
        )
