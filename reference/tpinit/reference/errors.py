"""The errors that users get, and `Problem`: one thing that is wrong with their input.

Malformed input (D7, D8, D11) is a `ConfigError`: it could not be read, so nothing was decided. A contract
violation (section 4) is a `DecisionError`: the input was read, and its values contradict each other. Both
list every problem, so that one run shows all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpinit.spec.vocabulary import Decision

__all__ = ["ConfigError", "ConflictingCallsError", "DecisionError", "Problem", "TpinitError"]


class TpinitError(ValueError):
    """The base of every error that tpinit raises for input that it was given."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One malformed value: its path, what was given (shortened), what is legal there, and the fix.

    `cause` is the exception of the user's own object (an mpu, a group), where one was raised.
    """

    path: str
    given: str
    message: str
    fix: str
    cause: BaseException | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        """Return two lines: the path, the value and what is legal; then the fix."""
        given = f" = {self.given}" if self.given else ""
        return f"{self.path}{given}: {self.message}\n    fix: {self.fix}"


class ConfigError(TpinitError):
    """The config, the call, the mpu or the world is malformed. `problems` lists every problem, sorted by path."""

    problems: tuple[Problem, ...]

    def __init__(self, problems: Iterable[Problem]) -> None:
        # Sorted by path; two problems of one path stay in the order in which they were found.
        self.problems = tuple(sorted(problems, key=lambda problem: problem.path))
        super().__init__(self.problems)
        # The traceback shows the first exception that a user's own object raised.
        self.__cause__ = next((problem.cause for problem in self.problems if problem.cause is not None), None)

    def __str__(self) -> str:
        count = len(self.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        return "\n".join([f"malformed input, {head}:", *(f"  {problem}" for problem in self.problems)])


class DecisionError(TpinitError):
    """The decision is an error (contract, section 4). `decision` holds its row and every violation."""

    decision: Decision

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        super().__init__(decision)

    def __str__(self) -> str:
        # Imported here: only an error that is printed needs it.
        from tpinit.reference.explain import explain

        return explain(self.decision)


class ConflictingCallsError(TpinitError):
    """Two calls of `tp_model_init` for one model disagree (D9)."""

    code = "CONFLICTING_CALLS"
