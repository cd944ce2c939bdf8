"""What rank 0 shows of a run: a bar that is redrawn on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any, TextIO

__all__ = ["Progress"]

_BAR = 20  # characters
_RECENT = 0.9  # the weight of the past in the time of an update


class Progress:
    """Shows the updates of a run of `steps`, which begins after update `done`."""

    def __init__(self, steps: int, done: int, every: int, stream: TextIO | None = None) -> None:
        self.stream = stream if stream is not None else sys.stdout
        self.terminal = self.stream.isatty()
        self.steps = steps
        self.every = every
        self.first = done + 1
        self._pace: float | None = None
        self._last = time.monotonic()
        self._drawn = 0

    def update(self, page: dict[str, Any]) -> None:
        """Show one update."""
        step, seconds = page["step"], page["seconds"]
        self._pace = seconds if self._pace is None else _RECENT * self._pace + (1 - _RECENT) * seconds
        text = self._text(page)
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            bar = max(1, min(_BAR, width - len(text) - len("[] ")))  # the numbers are whole, the bar takes what is left
            filled = bar * step // self.steps
            line = f"[{'#' * filled}{'.' * (bar - filled)}] {text}"[:width]
            self.stream.write(f"\r{line.ljust(self._drawn)}")
            self._drawn = len(line)
            self.stream.flush()
        elif step % self.every == 0 or step in (self.first, self.steps):
            self.say(text)

    def say(self, text: str) -> None:
        """Print a line; the bar goes on below it."""
        if self._drawn:
            self.stream.write("\r" + " " * self._drawn + "\r")
            self._drawn = 0
        self.stream.write(f"{text}\n")
        self.stream.flush()

    def end(self) -> None:
        """Leave the last bar where it is, and go to the next line."""
        if self._drawn:
            self.stream.write("\n")
            self._drawn = 0

    def _text(self, page: dict[str, Any]) -> str:
        assert self._pace is not None
        left = (self.steps - page["step"]) * self._pace
        digits = len(str(self.steps))
        return (
            f"step {page['step']:{digits}d}/{self.steps}  loss {page['loss']:.4f}  "
            f"{short(page['tokens_per_second'])} tokens/s  {page['memory_bytes'] / 2**30:.2f} GiB  ETA {clock(left)}"
        )


def short(count: float) -> str:
    """Return a number in three digits or so: 950, 12.3k, 4.5M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return f"{count:.0f}"


def clock(seconds: float) -> str:
    """Return a time as m:ss or h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
