"""Ctrl-C and SIGTERM: all ranks end together after the running update, with a checkpoint if that was asked for.

A scheduler or torchrun sends the signal to some ranks or to all, and never at the same point of the program. So a
handler only notes it. After each update the ranks exchange what they noted, in a group of its own: it is then between
updates on every rank, and a checkpoint can be saved.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from tpinit.runtime.checkpoint.ranks import agree
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.devices import message_device
from tpinit.runtime.groups.issuing import collective
from tpinit.runtime.training.engine_checkpoint import save_checkpoint, wait_for_save

if TYPE_CHECKING:
    from tpinit.runtime.training.engine import Engine

__all__ = ["TrainingStopped", "exit_if_signalled", "exit_on_signal", "settle"]

_log = logging.getLogger("tpinit")
_watches: weakref.WeakKeyDictionary[Engine, _Watch] = weakref.WeakKeyDictionary()
_groups: weakref.WeakKeyDictionary[ProcessGroup, ProcessGroup] = weakref.WeakKeyDictionary()


class TrainingStopped(SystemExit):
    """Raised on all ranks after an update when a signal came. The exit status is 128 + the signal's number.

    A SystemExit: it ends the program unless it is caught, runs `finally` blocks, and passes `except Exception`.
    `signal` is the signal, and `folder` the checkpoint that was saved, None without one. `loss` is what `train_batch`
    would have returned, None if the update was not run by it.
    """

    def __init__(self, received: signal.Signals, folder: Path | None) -> None:
        super().__init__(128 + received)
        self.signal = received
        self.folder = folder
        self.loss: torch.Tensor | None = None


class _Watch:
    """The handlers of one engine, and what it saves. `received` is the number of the last signal, 0 without one."""

    def __init__(self, signals: Sequence[signal.Signals], every: int, save: Callable[[], Path | None]) -> None:
        self.received = 0
        self.every = every
        self.save = save
        self._process = os.getpid()
        self._former = {one: signal.signal(one, self._note) for one in signals}

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() == self._process:
            self.received = number
        elif number != signal.SIGINT:  # a worker of a data loader, which was forked: Ctrl-C is for its parent
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def restore(self) -> None:
        for one, handler in self._former.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
        self._former.clear()


def exit_on_signal(
    engine: Engine,
    save_dir: str | os.PathLike[str] | None = None,
    client_state: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    *,
    keep_last: int | None = None,
    signals: Sequence[str] = ("SIGTERM", "SIGINT"),
    every: int = 1,
) -> None:
    """From now on, end all ranks together when a rank gets one of `signals`: `engine.step` raises TrainingStopped.

    Call it on all ranks, in the main thread. With `save_dir` the run is saved there before, as by `save_checkpoint`;
    `client_state` may be a function that returns it. The ranks exchange what came after every `every`-th update, by one
    all-reduce of a number. Signals that come while it saves change nothing. `engine.destroy()` restores the handlers.
    Raises EngineError for an unknown signal, and in another thread; CheckpointError on all ranks if they differ.
    """
    if threading.current_thread() is not threading.main_thread():
        raise EngineError("exit_on_signal: Python handles signals in the main thread only: call it there")
    chosen = [_signal(name) for name in signals]
    if type(every) is not int or every < 1:
        raise EngineError(f"exit_on_signal: every is {every!r}, and must be a number of updates from 1 on")
    folder = Path(save_dir).absolute() if save_dir is not None else None
    fields = {"save_dir": str(folder), "keep_last": keep_last, "signals": sorted(signals), "every": every}
    agree("exit_on_signal", lambda report: report.fields.update(fields))
    world = dist.group.WORLD
    if world is not None and world not in _groups and dist.is_gloo_available() and "fake" not in dist.get_backend():
        _groups[world] = collective("new_group", "ranks that exchange signals", backend="gloo")
    _restore(engine)  # those of an earlier call

    def save() -> Path | None:
        if folder is None:
            wait_for_save(engine)
            return None
        state = client_state() if callable(client_state) else client_state
        tag = f"global_step{engine.global_steps}"
        save_checkpoint(engine, folder, tag, state, keep_last=keep_last)
        return folder / tag

    _watches[engine] = _Watch(chosen, every, save)


def exit_if_signalled(engine: Engine) -> None:
    """Raise TrainingStopped on all ranks if one of them got a signal; `engine.step` calls this after an update.

    Call it yourself, on all ranks and between updates, in a loop that does not call `engine.step`, or that takes long
    between two updates. Does nothing without `exit_on_signal`.
    """
    watch = _watches.get(engine)
    if watch is None or engine.global_steps % watch.every:
        return
    group = _groups.get(dist.group.WORLD) if dist.group.WORLD is not None else None
    number = torch.tensor([watch.received], device=message_device(group))
    collective("all_reduce", "signals that came", number, op=dist.ReduceOp.MAX, group=group)
    if not int(number):
        return
    received = signal.Signals(int(number))
    try:
        folder = watch.save()
    finally:
        _restore(engine)
    _log.warning(
        "%s: training stops after update %d; %s",
        received.name, engine.global_steps, f"saved {folder}" if folder is not None else "nothing was saved",
    )  # fmt: skip
    raise TrainingStopped(received, folder)


def settle(engine: Engine) -> None:
    """Wait for a save in the background, and restore the handlers that were before `exit_on_signal`."""
    try:
        wait_for_save(engine)
    finally:
        _restore(engine)


def _restore(engine: Engine) -> None:
    watch = _watches.pop(engine, None)
    if watch is not None and threading.current_thread() is threading.main_thread():
        watch.restore()


def _signal(name: str) -> signal.Signals:
    found = getattr(signal, str(name), None)
    if not isinstance(found, signal.Signals) or found in (signal.SIGKILL, signal.SIGSTOP):
        raise EngineError(
            f"exit_on_signal: {name!r} is no signal that can be handled; legal are 'SIGTERM', 'SIGINT', ..."
        )
    return found
