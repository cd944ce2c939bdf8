"""The errors of the runtime. Each is a `TpinitError`, and none is raised after something was cut."""

from __future__ import annotations

from collections.abc import Iterable

from tpinit.reference.errors import TpinitError

__all__ = ["AgreementError", "EngineError", "GroupError", "LoadError", "PlanError", "UnsupportedError"]


class AgreementError(TpinitError):
    """Ranks were given different things, or some of them could not read theirs.

    The text names the ranks and every field that differs, and is the same on every rank. `fields` holds
    the names alone.
    """

    fields: tuple[str, ...]

    def __init__(self, message: str, fields: Iterable[str] = ()) -> None:
        self.fields = tuple(fields)
        super().__init__(message)


class GroupError(TpinitError):
    """Process groups that can't carry the run: they do not partition the world, or do not cross exactly once."""


class PlanError(TpinitError):
    """A model that the plan does not cover, or that does not divide. `missing` names the parameters."""

    missing: tuple[str, ...]

    def __init__(self, message: str, missing: Iterable[str] = ()) -> None:
        self.missing = tuple(missing)
        super().__init__(message)


class UnsupportedError(TpinitError):
    """Settings that this runtime does not honour. It refuses them, because ignoring them would be silent."""


class EngineError(TpinitError):
    """The engine was used out of order, or without what the call needs (no optimizer, no backward)."""


class LoadError(TpinitError):
    """Weights that can't be had: a checkpoint that is damaged or of another model, a model that can't be drawn."""
