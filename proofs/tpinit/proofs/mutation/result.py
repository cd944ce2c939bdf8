"""The result of judging a mutant."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["MutantStatus", "MutantResult"]


class MutantStatus(str, Enum):
    """The status of a mutant. A `listed` mutant survived, and `equivalent.json` gives the reason why it may."""

    KILLED = "killed"
    EQUIVALENT = "equivalent"
    LISTED = "listed"
    SURVIVED = "survived"


@dataclass(frozen=True, slots=True)
class MutantResult:
    """One judged mutant: its target, name and status, the theorem, test or time-out that killed it, and the message."""

    target: str
    name: str
    status: MutantStatus
    killer: str = ""
    message: str = ""
