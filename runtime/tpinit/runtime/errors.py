"""The errors of the runtime. Each is a `TpinitError`, which is a ValueError.

`initialize` raises them before it changes the model, so a corrected call can follow. Later come only: CollectiveError
from any collective, when a rank ended or did not come; EngineError from the engine; CheckpointError where it saves and
loads; AgreementError from a forward or `generate` that the ranks of a TP group call differently; LoadError and
AgreementError while `from_pretrained` or `from_config` read the weights of a model that they built themselves. What the
user's own functions raise passes unchanged if they raise it on all ranks, and is told in an AgreementError if they do
not. A function that makes the lr_scheduler runs after the model was sharded.
"""

from __future__ import annotations

from collections.abc import Iterable

from tpinit.reference.errors import TpinitError

__all__ = [
    "AgreementError",
    "CheckpointError",
    "CollectiveError",
    "DataError",
    "DeviceError",
    "EngineError",
    "GroupError",
    "LoadError",
    "MissingCallError",
    "MissingOutputError",
    "PlanError",
    "UnsupportedError",
]


class AgreementError(TpinitError):
    """Ranks were given different things, or some of them failed.

    The text names the ranks and every field that differs, and is the same on every rank. `fields` holds the names of
    these fields; "error" is among them if some ranks failed.
    """

    fields: tuple[str, ...]

    def __init__(self, message: str, fields: Iterable[str] = ()) -> None:
        self.fields = tuple(fields)
        super().__init__(message)


class CheckpointError(TpinitError):
    """A checkpoint that can't be written, read or trusted. All ranks raise it together, with one text."""


class CollectiveError(TpinitError):
    """A collective that failed: a rank of its group ended, came late, or issued another one.

    `ranks` are the global ranks of the group, `reason` is torch's, and `histories` are the last collectives of each
    rank, which are in the text too. The process groups are of no use any more: end the program, and start again from
    the last checkpoint.
    """

    ranks: tuple[int, ...]
    reason: str
    histories: str

    def __init__(self, message: str, ranks: Iterable[int] = (), reason: str = "", histories: str = "") -> None:
        self.ranks = tuple(ranks)
        self.reason = reason
        self.histories = histories
        super().__init__(message)


class DataError(TpinitError):
    """Lines of text that can't be trained on: each with its number, what is wrong with it and what is legal."""


class GroupError(TpinitError):
    """Process groups that can't be used: of different sizes, or a TP and a DP group do not share exactly one rank."""


class DeviceError(TpinitError):
    """A device that can't be used: the model, the mesh and the process group contradict each other, or none is visible.

    The engine raises it for a batch that is on another device than the model.
    """


class PlanError(TpinitError):
    """A model that can't be sharded as requested. `missing` holds the names of the parameters it is about.

    `forward_failed`: the model's forward raised where planning ran it; on another device it may not.
    """

    missing: tuple[str, ...]
    forward_failed: bool

    def __init__(self, message: str, missing: Iterable[str] = (), forward_failed: bool = False) -> None:
        self.missing = tuple(missing)
        self.forward_failed = forward_failed
        super().__init__(message)


class UnsupportedError(TpinitError):
    """Settings that are legal in DeepSpeed and not implemented here. They are refused instead of ignored."""


class EngineError(TpinitError):
    """The engine was used in the wrong order, or without what the call needs (no optimizer, no backward)."""


class MissingCallError(EngineError, AttributeError):
    """A name of DeepSpeed's engine that this one lacks; the text says what to do. An AttributeError for `hasattr`."""


class MissingOutputError(EngineError, AttributeError):
    """A part of a model's output that was not gathered is read. An AttributeError for `hasattr`."""


class LoadError(TpinitError):
    """Weights that can't be loaded: a damaged checkpoint, one of another model, or a model that can't be drawn."""
