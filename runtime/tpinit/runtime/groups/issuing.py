"""The one way in which the runtime issues a collective: it is recorded by name, and a failure says what happened.

torch raises a RuntimeError where a rank ended or came late, with an address and a line of its source. Here it becomes a
CollectiveError with the name of the collective and the last collectives of each rank.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from tpinit.runtime.errors import CollectiveError
from tpinit.runtime.groups.flight_recorder import flight_recorder, map_peers, own_address, rank_histories

__all__ = ["PendingCollective", "collective", "connect_recorders", "is_issuing", "recorded"]

_own = threading.local()  # whether a collective of the runtime is being issued
_LINES = 4096  # texts that are kept for a group; shapes may differ in every step
# By group: the record of a collective is the same text in every step.
_texts: weakref.WeakKeyDictionary[Any, dict[tuple[Any, ...], bytes]] = weakref.WeakKeyDictionary()


class PendingCollective:
    """A collective that runs; `wait` returns when it is done."""

    def __init__(self, work: Any, number: int, kind: str, name: str, group: ProcessGroup | None) -> None:
        self._work = work
        self._number = number
        self._what = kind, name, group

    def wait(self, timeout: timedelta | None = None) -> None:
        """Wait until the result may be used, at most `timeout` long. Raises CollectiveError if it failed."""
        try:
            self._work.wait(*(() if timeout is None else (timeout,)))
        except RuntimeError as error:
            if _is_of_device(error):
                raise
            raise _failure(error, *self._what) from error
        flight_recorder().end(self._number)


def collective(kind: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call the function `kind` of torch.distributed, and return its result; `name` says what is sent, for errors.

    Returns a PendingCollective with `async_op`. Raises CollectiveError if the collective fails: a rank of the group
    ended, did not come within the time-out, or issued another one. In code that torch.compile traces nothing is
    recorded.
    """
    if torch.compiler.is_compiling():
        return getattr(dist, kind)(*args, **kwargs)
    group, text = kwargs.get("group"), _text(kind, name, args, kwargs.get("group"))
    number, result = _issue(kind, name, group, text, lambda: getattr(dist, kind)(*args, **kwargs))
    if kwargs.get("async_op"):
        return PendingCollective(result, number, kind, name, group)
    flight_recorder().end(number)
    return result


def recorded(kind: str, name: str, call: Callable[[], Any]) -> Any:
    """Return what `call` returns, which issues a collective of `kind` over the world. Raises as `collective`."""
    number, result = _issue(kind, name, None, f"{kind}, {name}".encode(), call)
    flight_recorder().end(number)
    return result


def _issue(kind: str, name: str, group: Any, text: bytes, call: Callable[[], Any]) -> tuple[int, Any]:
    number = flight_recorder().begin(text)
    before, _own.issuing = is_issuing(), True
    try:
        return number, call()
    except RuntimeError as error:
        if _is_of_device(error):
            raise
        raise _failure(error, kind, name, group) from error
    finally:
        _own.issuing = before


def is_issuing() -> bool:
    """Return whether this thread is in a collective of the runtime, and not in one of the user."""
    return bool(getattr(_own, "issuing", False))


def connect_recorders() -> None:
    """Let the ranks of a host read each other's flight recorders. All ranks of the world must call this."""
    if not dist.is_initialized() or "fake" in str(dist.get_backend()):
        return
    addresses: list[Any] = [None] * dist.get_world_size()
    collective("all_gather_object", "places of the flight recorders", addresses, own_address())
    map_peers(addresses, dist.get_rank())


def _is_of_device(error: RuntimeError) -> bool:
    """Return whether an error is one of this rank's device: out of memory, or one of an earlier kernel."""
    return isinstance(error, (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError)))


def _failure(error: RuntimeError, kind: str, name: str, group: ProcessGroup | None) -> CollectiveError:
    ranks = _ranks(group)
    shown = ", ".join(map(str, ranks)) if len(ranks) <= 16 else f"{len(ranks)} of the world"
    reason = _reason(error)
    histories = rank_histories(ranks)
    flight_recorder().note(f"CollectiveError: {kind} of {name} failed")
    return CollectiveError(
        f"{kind} of {name} failed on rank {dist.get_rank() if dist.is_initialized() else 0}: a rank of its group "
        f"({shown}) ended, did not come within the time-out, or issued another collective ({reason}); {histories}\n"
        "  fix: the output of the rank that ended or is behind has the reason; start again from the last checkpoint "
        "(torchrun --max-restarts does)",
        ranks,
        reason,
        histories,
    )


def _reason(error: RuntimeError) -> str:
    """Return the first line of torch's error, without a place in its source and its advice."""
    line = (str(error).splitlines() or [""])[0]
    line = re.sub(r"^\[\S+:\d+\] ", "", line).partition(". This is typically caused")[0]
    return line[:300] or type(error).__name__


def _ranks(group: ProcessGroup | None) -> Sequence[int]:
    try:
        if isinstance(group, ProcessGroup):
            return tuple(dist.get_process_group_ranks(group))
        return tuple(range(dist.get_world_size()))
    except (RuntimeError, ValueError):  # the group was destroyed
        return ()


def _text(kind: str, name: str, args: tuple[Any, ...], group: Any) -> bytes:
    """Return what the recorder keeps of a collective: its kind, name, shape, dtype and ranks, in at most 183 bytes."""
    sent = next((arg for arg in args if isinstance(arg, torch.Tensor)), None)
    key = (kind, name, sent.shape, sent.dtype) if sent is not None else (kind, name)
    of_group = group if isinstance(group, ProcessGroup) else dist.group.WORLD
    texts = _texts.get(of_group) if of_group is not None else {}
    if texts is None:
        texts = _texts[of_group] = {}
    text = texts.get(key)
    if text is None:
        if len(texts) >= _LINES:
            texts.clear()
        text = texts[key] = _record(kind, name, sent, group)
    return text


def _record(kind: str, name: str, sent: torch.Tensor | None, group: Any) -> bytes:
    ranks = _ranks(group)
    over = ", ".join(map(str, ranks)) if len(ranks) <= 8 else f"{len(ranks)} ranks from {ranks[0]}"
    what = f", {list(sent.shape)} {str(sent.dtype).removeprefix('torch.')}" if sent is not None else ""
    end = f"{what}, {over}"
    # Of a long name the end is kept: it tells layers apart.
    room = 183 - len(f"{kind}, ") - len(end)
    return f"{kind}, {name[-room:] if room > 0 else ''}{end}".encode(errors="replace")[:183]
