"""SIGTERM as an exception: the stack unwinds, so that temporary folders are removed and child processes ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

__all__ = ["restore_default_sigterm", "raise_on_sigterm", "raising_on_sigterm"]


def _unwind(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second SIGTERM must not interrupt the clean-up
    raise SystemExit(128 + signal.SIGTERM)


def raise_on_sigterm() -> None:
    """Make SIGTERM raise SystemExit in this process from now on."""
    signal.signal(signal.SIGTERM, _unwind)


def restore_default_sigterm() -> None:
    """Restore the default action of SIGTERM, for a process that has nothing to clean up."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Make SIGTERM raise SystemExit inside this context."""
    before = signal.getsignal(signal.SIGTERM)
    raise_on_sigterm()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
