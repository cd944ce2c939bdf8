"""What became of a mutant."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Fate", "Judged"]


class Fate(str, Enum):
    """How a mutant ended. `listed` survived, and `equivalent.json` says why it may."""

    KILLED = "killed"
    EQUIVALENT = "equivalent"
    LISTED = "listed"
    SURVIVED = "survived"


@dataclass(frozen=True, slots=True)
class Judged:
    """One mutant: what it is of, its name, its fate, who killed it (a theorem, a test, time-out), and how."""

    target: str
    name: str
    fate: Fate
    killer: str = ""
    how: str = ""
