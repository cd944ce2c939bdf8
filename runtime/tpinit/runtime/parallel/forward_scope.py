"""What happens around every forward of a converted model: one place, in one order, on every rank of the TP group."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from tpinit.runtime.errors import CollectiveError, EngineError
from tpinit.runtime.groups.flight_recorder import flight_recorder
from tpinit.runtime.internals.torch_private import attached_hooks
from tpinit.runtime.internals.transformers_private import is_model
from tpinit.runtime.parallel.full_graph import graph_break

__all__ = ["ForwardScope", "pickle_error", "running_scope", "scope_of"]

Enter = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], None]
Leave = Callable[[nn.Module, Any], Any]


@dataclass(slots=True)
class TokenState:
    """What one forward does with the tokens under sequence parallelism.

    `leave_whole`: its caller wants all tokens between the layers. `whole_groups`: the ids of the process groups over
    which the running stack leaves them whole. `open_stacks`: stacks whose first layer has run, and whose last has not.
    """

    leave_whole: bool = False
    whole_groups: set[int] = field(default_factory=set)
    open_stacks: set[str] = field(default_factory=set)


_running: list[ForwardScope] = []  # innermost last


def running_scope() -> ForwardScope | None:
    """Return the scope of the innermost forward that runs, also of a copied model; None in a backward pass."""
    return _running[-1] if _running else None


def _ignore() -> None:
    """Take no note of a call."""


class ForwardScope:
    """Runs steps before and after each outermost forward of a converted model.

    `on_enter` steps get (model, args, kwargs) and may raise: then the forward does not start. `on_leave` steps get
    (model, output) and return the output; they run in reverse order of their registration, also if the forward raised
    (then the output is None and what they return is ignored). A forward inside another of the same model runs none;
    that of a transformers model inside which is called directly, such as an encoder in `generate`, is an outermost one.
    `active` tells whether a forward is running. `on_lone_call` is called when a part of the model runs outside of one.
    """

    def __init__(self, model: nn.Module) -> None:
        self._depth = 0
        self.tokens = TokenState()
        self._on_enter: list[Enter] = []
        self._on_leave: list[Leave] = []
        self.on_lone_call: Callable[[], None] = _ignore
        for module in model.modules():
            if module is model or is_model(module):
                module.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)
                module.register_forward_hook(self._leave, always_call=True)
        model.__dict__["tp_scope"] = self

    @property
    def active(self) -> bool:
        """Whether a forward of the model is running. The recomputation of a checkpointed layer is outside of it."""
        return self._depth > 0

    def add(self, enter: Enter | None = None, leave: Leave | None = None, first: bool = False) -> None:
        """Add a step before each forward, after each forward, or both.

        A `first` one runs before all others, and leaves after them: the comparison of the ranks, which must take place
        on every rank even if another step raises on one of them.
        """
        if enter is not None:
            self._on_enter.insert(0 if first else len(self._on_enter), enter)
        if leave is not None:
            self._on_leave.insert(0 if first else len(self._on_leave), leave)

    # Eager under torch.compile: the ranks compare their calls and random states in every forward.
    @graph_break
    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth += 1
        if self._depth == 1:
            self.tokens = TokenState()
            _running.append(self)
            try:
                for step in self._on_enter:  # if one raises, torch still calls the hook that leaves
                    step(model, args, kwargs)
            except BaseException:
                if all(function != self._leave for _, function in attached_hooks(model)):  # somebody removed it
                    self.reset()
                raise

    @graph_break
    def _leave(self, model: nn.Module, _: Any, output: Any) -> Any:
        outermost = self._depth == 1
        if outermost and output is None:
            _note_error()
        self._depth = max(0, self._depth - 1)
        if outermost:
            try:
                for step in reversed(self._on_leave):
                    output = step(model, output)
            finally:
                self._stop()
        return output

    def _stop(self) -> None:
        if self in _running:
            _running.remove(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> ForwardScope:
        """Return a scope for a copied model."""
        twin = ForwardScope.__new__(ForwardScope)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __reduce_ex__(self, _: Any) -> Any:
        """Raise EngineError: a module inside a sharded model is pickled, and has no place that a pickle could name."""
        raise pickle_error()

    def reset(self) -> None:
        """Forget a forward that never ended: KeyboardInterrupt skips the hooks of torch. The engine calls this."""
        self._depth = 0
        self._stop()


def pickle_error() -> EngineError:
    """Return the error for a module inside a sharded model that is pickled."""
    return EngineError(
        "pickle and torch.save of a module inside a sharded model would store the part of one rank: call "
        "engine.module.save_pretrained(folder) on every rank, which writes the whole model; a pickle of engine.module "
        "itself is read beside a living model of the same plan"
    )


def _note_error() -> None:
    """Record that this rank's forward raised: another rank, which waits for it, then says so in its own error."""
    error = sys.exc_info()[1]  # torch calls the hooks while it handles the error
    if error is not None and not isinstance(error, CollectiveError):
        lines = str(error).splitlines() or [""]
        flight_recorder().note(f"the forward raised {type(error).__name__}: {lines[0]}")


def scope_of(model: nn.Module) -> ForwardScope | None:
    """Return the scope of a converted model; None for any other module."""
    found = model.__dict__.get("tp_scope")
    return found if isinstance(found, ForwardScope) else None
