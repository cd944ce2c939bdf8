"""The calls of `tp_model_init`, by model, in a weak map: a call is forgotten with its model (D9)."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary, WeakSet

from torch import nn
from tpinit.reference.config import parse_dtype
from tpinit.reference.errors import ConflictingCallsError
from tpinit.reference.objects import CallArgs
from tpinit.reference.spellings import show

__all__ = ["RecordedCall", "consume_call", "is_initialized", "record_call", "recorded_call", "sharded_inside"]


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call: the arguments that the resolver reads, and the call's config, which must equal that of `initialize`."""

    args: CallArgs
    config: object


_CALLS: WeakKeyDictionary[nn.Module, RecordedCall] = WeakKeyDictionary()
_INITIALIZED: WeakSet[nn.Module] = WeakSet()


def record_call(model: nn.Module, new: RecordedCall) -> None:
    """Record a call for its model. A repeated call with equal arguments has no effect.

    Raises ConflictingCallsError (D9) if an earlier call for this model gave another size, dtype, group or config,
    ConfigError for an unknown dtype (D8).
    """
    dtype = parse_dtype(new.args.dtype, "call.dtype")
    old = _CALLS.get(model)
    if old is None:
        _CALLS[model] = new
        return
    differing = []
    if (type(old.args.tp_size), old.args.tp_size) != (type(new.args.tp_size), new.args.tp_size):
        differing.append(f"tp_size: first {show(old.args.tp_size)}, now {show(new.args.tp_size)}")
    if parse_dtype(old.args.dtype, "call.dtype") is not dtype:
        differing.append(f"dtype: first {show(old.args.dtype)}, now {show(new.args.dtype)}")
    if not _is_one_group(old.args.tp_group, new.args.tp_group):
        differing.append(f"tp_group: first {show(old.args.tp_group)}, now {show(new.args.tp_group)}")
    if old.config is not new.config and old.config != new.config:
        differing.append("config: not the config of the first call")
    if differing:
        raise ConflictingCallsError(
            "CONFLICTING_CALLS: tp_model_init was called before for this model with other arguments; "
            + "; ".join(differing)
            + "\n  fix: call it once, or with the same arguments each time"
        )


def _is_one_group(one: object, other: object) -> bool:
    """Return whether two handles name one group: a communicator is itself, a list the group of its ranks (D12)."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return sorted(one) == sorted(other)
    return one is other


def recorded_call(model: nn.Module) -> RecordedCall | None:
    """Return the recorded call for a model, and keep it; None if there is none."""
    return _CALLS.get(model)


def consume_call(model: nn.Module) -> None:
    """Forget the recorded call for a model, and record that the model is initialized."""
    _CALLS.pop(model, None)
    _INITIALIZED.add(model)


_MARKS = ("tp_scope", "tp_guard_scope", "tp_region_output")  # attributes of converted models and layers


def sharded_inside(model: nn.Module) -> str | None:
    """Return the name of the first module inside of a model that an earlier `initialize` sharded; None without one."""
    found = (name for name, module in model.named_modules() if not module.__dict__.keys().isdisjoint(_MARKS))
    return next(found, None)


def is_initialized(model: nn.Module) -> bool:
    """Return whether `initialize` has already succeeded for this model."""
    return model in _INITIALIZED
