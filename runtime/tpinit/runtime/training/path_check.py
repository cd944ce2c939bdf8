"""After each forward of unknown code: did it run the operations that the plan was checked for?

What a forward does may depend on a keyword, a size, a mode, an attribute, a count of its calls. So the operations of
each forward are hashed, by name and kind of arguments; for a hash that is new, the dry run of the plan is repeated on
these inputs (`planning.check.rehearsal`), and the forward is refused if the plan is wrong for it.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from tpinit.runtime.errors import EngineError, PlanError
from tpinit.runtime.groups.agreement import describe_error
from tpinit.runtime.groups.call_inputs import has_fake_tensors
from tpinit.runtime.internals.torch_private import CALL_METHODS, empty_module_state, in_compiled_call, is_compiled
from tpinit.runtime.internals.transformers_private import CAPTURES
from tpinit.runtime.parallel.forward_scope import scope_of
from tpinit.runtime.parallel.full_graph import graph_break
from tpinit.runtime.planning.check.rehearsal import Rehearsal

__all__ = ["PathCheck", "watch_paths"]

_log = logging.getLogger("tpinit")
_MANY = 32  # different paths: a line of the log says that each costs a dry run
_COPIED = (list, dict, set)  # of at most so many items, to see what a forward adds
_ITEMS = 64
_SMALL = 4  # integers below are positions and flags; others are sizes
_STATE = frozenset((*empty_module_state(), *CALL_METHODS, "forward", CAPTURES)) - {"training"}
_OWN = "tp_"  # attributes of parallel layers


class _Operations(TorchFunctionMode):
    """Hashes the functions of torch that run, in order, with the kinds of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.path = 0
        self.counts = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Add one function to the hash, and run it."""
        if torch.compiler.is_compiling():  # a constant for torch.compile, which then traces the function alone
            return function(*args, **kwargs) if kwargs else function(*args)
        if self.counts and function not in _METADATA:
            self.path = hash((self.path, function, _kind(args), _kind(kwargs) if kwargs else 0))
        return function(*args, **kwargs) if kwargs else function(*args)


_PROPERTIES = "shape dtype device layout ndim requires_grad is_leaf is_meta is_cuda is_cpu grad_fn data"
_METADATA = frozenset(getattr(torch.Tensor, name).__get__ for name in _PROPERTIES.split())


def _kind(value: Any) -> Any:
    """Return what of an argument decides what a function does: of a tensor the dtype and which sizes are one."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple([size == 1 for size in value.shape])
    kind = type(value)
    if kind is int:
        return value if value < _SMALL else kind
    if kind is float:
        return kind if value else 0.0
    if kind is tuple or kind is list:
        return tuple([_kind(item) for item in value])
    if kind is dict:
        return tuple([(key, _kind(item)) for key, item in value.items()])
    if kind is slice:
        return _kind((value.start, value.stop, value.step))
    return value if value is None or kind in (bool, str, torch.dtype) else kind


class PathCheck:
    """Refuses a forward whose operations differ from those of all checked ones, and for which the plan is wrong.

    `rehearsal` holds the model as it was before it was sharded. Forwards that get a cache, as those of `generate`, and
    compiled models are not compared. All ranks of a TP group run the same operations, so all of them raise.
    """

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._rehearsal = rehearsal
        self._operations = _Operations()
        self._pushed = False
        self._known: set[int] = set()
        self._names: list[tuple[str, nn.Module]] = []
        self._first: dict[str, dict[str, Any]] = {}
        self._before: dict[str, dict[str, Any]] = {}
        self._arguments: tuple[tuple[Any, ...], Mapping[str, Any]] = ((), {})

    def remember(self, model: nn.Module) -> None:
        """Take the attributes of a sharded model for those that the plan was made with."""
        self._names = list(model.named_modules())
        self._first = self._attributes()

    @graph_break
    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Begin to hash the operations of a forward."""
        if scope_of(model) is None or has_fake_tensors(args, kwargs) or _continues(args, kwargs):
            return
        if any(is_compiled(module) for module in model.modules()) or in_compiled_call():
            return  # torch.compile would compile the hash too
        if not self._names:
            self.remember(model)
        self._before, self._arguments = self._attributes(), (args, kwargs)
        self._operations.path, self._operations.counts = 0, True
        if not self._pushed:  # an interrupted forward leaves it
            self._operations.__enter__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._pushed = True

    @graph_break
    def leave(self, model: nn.Module, output: Any) -> Any:
        """Raise EngineError if the forward ran operations for which the plan is wrong."""
        if not self._pushed:
            return output
        self._operations.counts, self._pushed = False, False
        self._operations.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # the same
        (args, kwargs), self._arguments = self._arguments, ((), {})
        path = hash((self._operations.path, torch.is_grad_enabled()))
        if output is not None and path not in self._known:
            self._rehearse(model, args, kwargs)
            self._known.add(path)
            if len(self._known) == _MANY:
                _log.warning(
                    "%d forwards ran different operations; the dry run of the plan was repeated for each, which takes "
                    'time; verify="none" leaves it out',
                    _MANY,
                )
        return output

    def _rehearse(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        changed = {
            name: {key: value for key, value in held.items() if not _same(self._first[name], key, value)}
            for name, held in self._before.items()
        }
        try:
            inputs = _named(model, args, kwargs)
            self._rehearsal.check(inputs, model, {name: values for name, values in changed.items() if values})
        except PlanError as error:
            if error.forward_failed:
                _log.warning(
                    "a forward with %s ran operations that planning has not seen, and can't be checked: %s",
                    _described(args, kwargs),
                    error,
                )
                return
            raise EngineError(
                f"a forward with {_described(args, kwargs)} runs operations that planning has not seen, and would be "
                f"wrong while the model is sharded: {error}; nothing was updated. Pass such a batch as `example` to "
                "initialize, or keep the layers whole (partition_type skip in partition_config)"
            ) from error
        except Exception as error:  # of a copy of unknown code
            _log.warning("a forward with %s can't be checked: %s", _described(args, kwargs), describe_error(error))

    def _attributes(self) -> dict[str, dict[str, Any]]:
        """Return the attributes of all modules; containers as copies, to see what a forward changes in them."""
        return {
            name: {
                key: copy.copy(value) if type(value) in _COPIED and len(value) <= _ITEMS else value
                for key, value in module.__dict__.items()
                if key not in _STATE and not key.startswith(_OWN)
            }
            for name, module in self._names
        }

    def __deepcopy__(self, _: dict[int, Any]) -> PathCheck:
        """Return a check for a copied model, which it reads at its first forward."""
        return PathCheck(self._rehearsal)


def _same(first: Mapping[str, Any], key: str, value: Any) -> bool:
    """Return whether an attribute is what it was; a module, or a list of them, is never taken over."""
    before = first.get(key, _same)
    if before is value or isinstance(value, nn.Module):
        return True
    if type(value) in (bool, int, float, str):
        return type(before) is type(value) and before == value
    if type(value) in _COPIED and type(before) is type(value):
        items, others = (list(one.values()) if isinstance(one, dict) else list(one) for one in (value, before))
        if any(isinstance(item, nn.Module) for item in items):
            return True
        return len(items) == len(others) and all(map(_equal, items, others))
    return False


def _equal(one: Any, other: Any) -> bool:
    return one is other or (type(one) in (bool, int, float, str) and type(one) is type(other) and one == other)


def _continues(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a forward, as those of `generate`, gets a cache, which holds the heads of one rank."""
    cached = any(callable(getattr(value, "get_seq_length", None)) for value in (*args, *kwargs.values()))
    return torch.is_inference_mode_enabled() or (cached and not torch.is_grad_enabled())


def _named(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a forward by name. Raises PlanError (`forward_failed`) for those without a name."""
    if not args:
        return dict(kwargs)
    names = [name for name, one in inspect.signature(model.forward).parameters.items() if one.kind in _BY_NAME]
    if len(names) < len(args):
        raise PlanError("its positional arguments have no names", forward_failed=True)
    return {**dict(zip(names, args, strict=False)), **kwargs}


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)


def _described(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the arguments of a forward in words: shapes of tensors, and plain values."""
    named = [(str(place), value) for place, value in enumerate(args)] + list(kwargs.items())
    shown = [
        f"{name} {list(value.shape) if isinstance(value, torch.Tensor) else repr(value)[:40]}" for name, value in named
    ]
    return ", ".join(shown) or "no arguments"


def watch_paths(model: nn.Module, rehearsal: Rehearsal) -> None:
    """Check the operations of each outermost forward of a converted model against its plan."""
    scope = scope_of(model)
    if scope is None:
        return
    check = PathCheck(rehearsal)
    check.remember(model)
    scope.add(check.enter, check.leave)
