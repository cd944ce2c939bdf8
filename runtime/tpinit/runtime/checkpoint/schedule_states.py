"""The state of a learning-rate schedule for another layout of files: that of DeepSpeed's schedules and of torch's.

DeepSpeed's have one number, the iteration, and torch's their attributes. Neither says of which class it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tpinit.runtime.checkpoint.values import check_kinds, decode, encode
from tpinit.runtime.errors import CheckpointError

__all__ = ["check_foreign_schedule", "counts_iterations", "deepspeed_schedule", "stored_schedule"]

_ITERATION = "last_batch_iteration"
_OF_TORCH = "_last_lr"  # all schedules of torch have it
# What only some releases of torch have, and what decides no learning rate.
_BOOKKEEPING = ("_get_lr_called_within_step", "_is_initial", "_step_count", "verbose")

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
        iteration = state[_ITERATION]
        if type(iteration) is not int or not -1 <= iteration < 1 << 62:
            raise ValueError(f"{_ITERATION} is {str(iteration)[:50]}")
        return None
    if _OF_TORCH in state:
        return None
    shown = ", ".join(sorted(str(key)[:40] for key in state)[:6]) or "nothing"
    return f"its state has {shown}: those of DeepSpeed's schedules have {_ITERATION}, and those of torch {_OF_TORCH}"


def check_foreign_schedule(own: State, stored: Any, name: str) -> State:
    """Return a state without the name of a class as the schedule `name`, whose state is `own`, can load it.

    Raises CheckpointError if it is the state of another schedule, and ValueError for values of other kinds.
    """
    found = {key: value for key, value in stored.items() if key in own or key not in _BOOKKEEPING}
    missing = own.keys() - found.keys() - {*_BOOKKEEPING}
    other = sorted(map(str, missing | (found.keys() - own.keys())))
    if other:
        raise CheckpointError(
            f"the state of the schedule is not that of this run's {name}: {', '.join(other)[:200]} "
            f"{'is' if len(other) == 1 else 'are'} in one of them alone; take the schedule that wrote it, or pass "
            "load_lr_scheduler_states=False"
        )
    check_kinds(own, found, "the schedule's")
    return found
