"""What `tp_model_init` recorded, by model: a weak map, so a record lives and dies with its model (D9)."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary, WeakSet

from torch import nn
from tpinit.reference.config import parse_dtype
from tpinit.reference.errors import ConflictingCallsError
from tpinit.reference.objects import CallArgs
from tpinit.reference.spellings import show

__all__ = ["RecordedCall", "consume_call", "is_initialized", "record_call", "recorded_call"]


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call: what the resolver reads, and the config that the call was given, which only has to agree."""

    call: CallArgs
    config: object


_RECORDS: WeakKeyDictionary[nn.Module, RecordedCall] = WeakKeyDictionary()
_INITIALIZED: WeakSet[nn.Module] = WeakSet()


def record_call(model: nn.Module, new: RecordedCall) -> None:
    """Record a call for its model; an identical repeat is harmless.

    Raises ConflictingCallsError (D9) when an earlier call for this model gave another size, dtype or group,
    ConfigError for a dtype that is none (D8).
    """
    dtype = parse_dtype(new.call.dtype, "call.dtype")
    old = _RECORDS.get(model)
    if old is None:
        _RECORDS[model] = new
        return
    differing = []
    if (type(old.call.tp_size), old.call.tp_size) != (type(new.call.tp_size), new.call.tp_size):
        differing.append(f"tp_size: first {show(old.call.tp_size)}, now {show(new.call.tp_size)}")
    if parse_dtype(old.call.dtype, "call.dtype") is not dtype:
        differing.append(f"dtype: first {show(old.call.dtype)}, now {show(new.call.dtype)}")
    if old.call.tp_group is not new.call.tp_group:
        differing.append(f"tp_group: first {show(old.call.tp_group)}, now {show(new.call.tp_group)}")
    if old.config is not new.config and old.config != new.config:
        differing.append("config: another one was given first")
    if differing:
        raise ConflictingCallsError(
            "CONFLICTING_CALLS: tp_model_init was called before for this model, with other arguments; "
            + "; ".join(differing)
            + "\n  fix: call it once, or with the same arguments each time"
        )


def recorded_call(model: nn.Module) -> RecordedCall | None:
    """Return the record of a model, without consuming it."""
    return _RECORDS.get(model)


def consume_call(model: nn.Module) -> None:
    """Forget the record of a model that was just initialized, and remember that it was."""
    _RECORDS.pop(model, None)
    _INITIALIZED.add(model)


def is_initialized(model: nn.Module) -> bool:
    """Say whether `initialize` has already succeeded for this model."""
    return model in _INITIALIZED
