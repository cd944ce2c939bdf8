"""The observation of one job: what the ranks of a world did, put together from their reports."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tpinit.conformance.adapters.deepspeed.jobs import Partition

__all__ = ["StartStatus", "Observation", "Training", "observe"]

# DeepSpeed's error messages, by their constant part, and the violations that they report.
_WORDS: tuple[tuple[str, str], ...] = (
    (r"Conflicting tp_model_init arguments", "CONFLICTING_CALLS"),
    (r"must not receive mpu", "GROUP_AND_MPU"),
    (r"Conflicting tensor_parallel\.(autotp_size|tp\.tp_size) in config", "SIZE_MISMATCH"),
    (r"tp\.tp_size \(.*\) does not match tensor_parallel\.autotp_size", "SIZE_MISMATCH"),
    (r"does not match tp_group size", "GROUP_SIZE_MISMATCH"),
    (r"Conflicting tensor_parallel\.tp\.tp_group in config", "GROUP_IDENTITY_MISMATCH"),
    (r"Conflicting (dtype|tensor_parallel\.dtype)", "DTYPE_MISMATCH"),
)
# The largest error of a weight from rounding alone after four updates; weights are of the order of 1.
_TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 6e-2}


class StartStatus(str, Enum):
    """How `initialize` (or a call before it) ended on all ranks."""

    ENGINE = "engine"
    ERROR = "error"
    HANG = "hang"
    DIED = "died"
    DISAGREE = "disagree"


@dataclass(frozen=True, slots=True)
class Training:
    """Four updates compared with the unsharded model: the largest weight error `off_by`, or the first exception."""

    off_by: float | None = None
    updates: Sequence[Mapping[str, Any]] = ()
    tolerance: float = 0.0
    raised: Mapping[str, str] | None = None
    hung: Sequence[int] = ()

    @property
    def wrong(self) -> bool:
        """Whether a weight differs from the unsharded model's by more than the tolerance."""
        return self.off_by is not None and not self.off_by <= self.tolerance


@dataclass(frozen=True, slots=True)
class Observation:
    """One job: its outcome, the error of each rank, and the observed behaviour of the engines."""

    ended: StartStatus
    errors: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    hung: Sequence[int] = ()
    where: Mapping[int, Sequence[str]] = field(default_factory=dict)
    degrees: Sequence[int] = ()
    slices: Sequence[int | None] = ()
    dtypes: Sequence[str] = ()
    claims: Sequence[Mapping[str, Any]] = ()
    sharding: Partition | None = None
    averaging: Partition | None = None
    divisor: float | None = None
    checking: Partition | None = None
    training: Training = Training()
    changed: Mapping[str, str] = field(default_factory=dict)
    steps: Sequence[Sequence[Mapping[str, Any]]] = ()

    @property
    def codes(self) -> tuple[str, ...]:
        """The violations that an error names, from its `codes` or from DeepSpeed's message."""
        for error in self.errors.values():
            if error.get("codes"):
                return tuple(error["codes"])
            for words, code in _WORDS:
                if re.search(words, error["message"]):
                    return (code,)
        return ()

    @property
    def message(self) -> str:
        """The first error in one line, with the ranks that raised it."""
        if not self.errors:
            return f"ranks {list(self.hung)} hang" if self.hung else ""
        error = next(iter(self.errors.values()))
        same = [rank for rank, other in self.errors.items() if other["type"] == error["type"]]
        # Drop the link to pydantic's documentation, which contains its version.
        text = " ".join(str(error["message"]).split()).partition(" For further information")[0]
        who = "all ranks" if len(same) == len(self.steps) else f"rank{'s' * (len(same) > 1)} {_listed(same)}"
        return f"{who}: {error['type']}: {text[:220] or '(no message)'}"


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))


def observe(report: Mapping[str, Any], model: str = "m") -> Observation:
    """Return the observation of one model from the reports of a job's ranks."""
    ranks: Sequence[Mapping[str, Any]] = report["ranks"]
    steps = [[note for note in rank["steps"] if note.get("model") == model] for rank in ranks]
    changed: dict[str, str] = {}
    errors: dict[int, Mapping[str, Any]] = {}
    for rank, notes in enumerate(steps):
        for note in notes:
            changed.update(note.get("config_changed") or {})
            if note["op"] != "observe" and note.get("ok") is False and rank not in errors:
                errors[rank] = note["error"]
    engines = [rank for rank, notes in enumerate(steps) if _engine(notes) is not None]
    where = {rank: ranks[rank].get("stack", []) for rank in report["hung"]}
    common: dict[str, Any] = {"errors": errors, "steps": steps, "changed": changed, "where": where}
    if len(engines) < len(steps):
        if report["died"]:
            return Observation(StartStatus.DIED, **common)
        if errors and engines:
            return Observation(StartStatus.DISAGREE, **common)
        ended = StartStatus.HANG if report["hung"] else StartStatus.ERROR
        return Observation(ended, hung=report["hung"], **common)
    shards = [_engine(notes) or {} for notes in steps]
    claims = [next(note["claims"] for note in notes if "claims" in note) for notes in steps]
    dtypes = sorted({dtype for shard in shards for dtype in shard["dtypes"]})
    averaging = _gathered(steps, "averaging", "ranks")
    return Observation(
        StartStatus.ENGINE,
        hung=report["hung"],
        degrees=[shard["degree"] for shard in shards],
        slices=[shard["slice"] for shard in shards],
        dtypes=dtypes,
        claims=claims,
        sharding=_gathered(steps, "sharding", "group"),
        averaging=averaging,
        divisor=next((note["divisor"] for note in _notes(steps, "averaging") if note.get("divisor")), None),
        checking=_gathered(steps, "check", "group"),
        training=_training(steps, dtypes, report["hung"]),
        **common,
    )


def _engine(notes: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((note["shards"] for note in notes if note["op"] == "initialize" and note.get("shards")), None)


def _notes(steps: Sequence[Sequence[Mapping[str, Any]]], what: str) -> list[Mapping[str, Any]]:
    return [note for notes in steps for note in notes if note.get("what") == what]


def _gathered(steps: Sequence[Sequence[Mapping[str, Any]]], what: str, key: str) -> Partition | None:
    """Return the distinct groups that the ranks report (not always a partition), None if a rank reports none."""
    reported = [note.get(key) for note in _notes(steps, what) if note.get("ok")]
    if len(reported) < len(steps) or any(group is None for group in reported):
        return None
    groups: Partition = []
    for group in reported:
        if group is not None and group not in groups:
            groups.append(group)
    return sorted(groups)


def _training(steps: Sequence[Sequence[Mapping[str, Any]]], dtypes: Sequence[str], hung: Sequence[int]) -> Training:
    notes = _notes(steps, "numbers")
    tolerance = max((_TOLERANCE.get(dtype, 1e-3) for dtype in dtypes), default=1e-3)
    raised = next((note["error"] for note in notes if note.get("ok") is False), None)
    updates = [note.get("updates", []) for note in notes]
    unfinished = [rank for rank, note in enumerate(notes) if "ok" not in note and rank in hung]
    if raised is not None or unfinished or not updates or not all(updates):
        return Training(raised=raised, tolerance=tolerance, hung=unfinished)
    worst = max(updates, key=lambda rank: max(update["weights_off_by"] for update in rank))
    return Training(max(update["weights_off_by"] for update in worst), worst, tolerance)
