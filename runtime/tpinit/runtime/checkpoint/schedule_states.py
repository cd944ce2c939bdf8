"""The state of a learning-rate schedule for another layout of files: that of DeepSpeed's schedules and of torch's.

DeepSpeed's have one number, the iteration, and torch's their attributes. Neither says of which class it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tpinit.runtime.checkpoint.values import check_kinds, check_like, decode, encode
from tpinit.runtime.errors import CheckpointError
from tpinit.runtime.internals.state_dict_private import LAST_RATES, SCHEDULE_BOOKKEEPING, SCHEDULE_STEPS

__all__ = ["check_own_schedule", "check_schedule", "counts_iterations", "deepspeed_schedule", "stored_schedule"]

_ITERATION = "last_batch_iteration"

_COUNTS = (_ITERATION, "last_epoch", SCHEDULE_STEPS)

State = Mapping[str, Any]


def counts_iterations(state: State) -> bool:
    """Return whether a state is that of DeepSpeed's schedules: the iteration alone."""
    return state.keys() == {_ITERATION}


def stored_schedule(page: Any) -> State | str | None:
    """Return the schedule's state on the page of a checkpoint of ours, why it can't be converted, or None without one.

    Raises CheckpointError for a damaged page.
    """
    if page is None:
        return None
    try:
        state = decode(page["state"])
        reason = _unknown(state)
        return state if reason is None else f"it is of a {str(page['class'])[:100]}, and {reason}"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the page of the schedule can't be read: {str(error)[:200]}") from error


def deepspeed_schedule(files: Sequence[Mapping[str, Any]]) -> State | str | None:
    """Return the schedule's state in DeepSpeed's files of all ranks, why it can't be converted, or None without one.

    Raises CheckpointError for what is no state, and for ranks that have different ones.
    """
    first = files[0].get("lr_scheduler")
    try:
        if len({repr(encode(file.get("lr_scheduler"), "lr_scheduler")) for file in files}) > 1:
            raise CheckpointError("the state of the schedule differs between the files of the ranks")
        return None if first is None else _unknown(first) or first
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the state of the schedule in the files can't be read: {str(error)[:200]}") from error


def _unknown(state: Any) -> str | None:
    """Return why a state is none of a known schedule. Raises ValueError for what is no state at all."""
    if not isinstance(state, dict):
        raise ValueError(f"it is a {type(state).__name__}")
    if counts_iterations(state):
        _check_counts(state)
        return None
    if LAST_RATES in state:
        return None
    shown = ", ".join(sorted(str(key)[:40] for key in state)[:6]) or "nothing"
    return f"its state has {shown}: those of DeepSpeed's schedules have {_ITERATION}, and those of torch {LAST_RATES}"


def _check_counts(state: State) -> None:
    for name in _COUNTS:
        count = state.get(name, 0)
        if type(count) is not int or not -1 <= count < 1 << 62:
            raise ValueError(f"the schedule's {name} is {str(count)[:50]}, and must be an integer of at least -1")


def check_schedule(own: State, stored: Any, name: str) -> State:
    """Return a state as the schedule `name` of DeepSpeed or of torch, whose state is `own`, can load it.

    Raises CheckpointError if it is the state of another schedule, and ValueError for values of another form.
    """
    if not isinstance(stored, dict):
        raise ValueError(f"the schedule's state is a {type(stored).__name__}")
    found = {key: value for key, value in stored.items() if key in own or key not in SCHEDULE_BOOKKEEPING}
    missing = own.keys() - found.keys() - {*SCHEDULE_BOOKKEEPING}
    other = sorted(map(str, missing | (found.keys() - own.keys())))
    if other:
        raise CheckpointError(
            f"the state of the schedule is not that of this run's {name}: {', '.join(other)[:200]} "
            f"{'is' if len(other) == 1 else 'are'} in one of them alone; take the schedule that wrote it, or pass "
            "load_lr_scheduler_states=False"
        )
    _check_counts(found)
    for key, value in found.items():
        check_like(own[key], value, f"the schedule's {key}")
    return found


def check_own_schedule(scheduler: Any, stored: Any, name: str) -> State:
    """Return a state that a schedule of the same class `name` saved, as it can load it. Raises as `check_schedule`.

    A class of the user's may save other values at another time: of it only the kinds of values are compared.
    """
    own = scheduler.state_dict()
    if counts_iterations(own) or LAST_RATES in own:
        return check_schedule(own, stored, name)
    check_kinds(own, stored, "the schedule's", {*dir(type(scheduler)), *(vars(scheduler).keys() - own.keys())})
    return dict(stored)
