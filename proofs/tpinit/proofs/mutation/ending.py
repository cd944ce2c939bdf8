"""Ending early: a SIGTERM unwinds the stack, so that folders are taken away and processes ended on the way out."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

__all__ = ["ended_by_default", "unwind_on_sigterm", "unwinding"]


def _unwind(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one must not cut the clearing up short
    raise SystemExit(128 + signal.SIGTERM)


def unwind_on_sigterm() -> None:
    """Let SIGTERM raise SystemExit in this process from now on."""
    signal.signal(signal.SIGTERM, _unwind)


def ended_by_default() -> None:
    """Let SIGTERM end this process as it ends any other: for one that has nothing of its own to clear up."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def unwinding() -> Iterator[None]:
    """Let SIGTERM raise SystemExit in here."""
    before = signal.getsignal(signal.SIGTERM)
    unwind_on_sigterm()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
