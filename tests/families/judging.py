"""Judge one model: from the errors that its ranks measured, or from how they failed."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from families.ranks import RankEnd, failure

# Bounds of relative errors.
EXACT = 1e-5  # tpinit: loss, gradients, norm and weights in fp32
NOISE = 1e-4  # tpinit, if fp32 is too coarse for EXACT: this bound in fp32, and EXACT_DOUBLE in fp64
EXACT_DOUBLE = 1e-10
CLOSE = 1e-4  # peers: losses and gradients in fp32
OVER_NOISE = 10  # peers, if fp32 is too coarse for CLOSE: a multiple of the unsharded model's error from itself in fp64
MEASURES = ("loss", "gradient", "norm", "weight")
_SHORT = 100


class FamilyStatus(enum.Enum):
    """How a runner handles one model. The page prints the value."""

    EXACT = "exact"
    REFUSED = "refused"
    NOTHING_CUT = "nothing cut"
    ERROR = "error"
    WRONG = "WRONG"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class FamilyResult:
    """The result of one model with one runner: status, explanation, and the share of the parameters on a rank."""

    verdict: FamilyStatus
    words: str = ""
    share: float | None = None
    source: str = ""
    trace: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data for JSON."""
        return asdict(self) | {"verdict": self.verdict.name}

    @staticmethod
    def of(fields: dict[str, Any]) -> FamilyResult:
        """Return the result from which `as_dict` made these fields."""
        return FamilyResult(**{**fields, "verdict": FamilyStatus[fields["verdict"]]})


def judge_ours(ends: Sequence[RankEnd], double: Callable[[], Sequence[RankEnd]]) -> FamilyResult:
    """Judge a run of tpinit; `double` repeats it in fp64 and is called only if fp32 is too coarse to decide."""
    failed = failure(list(ends))
    if failed is not None:
        # The model is refused only if every rank that was not stopped refuses it.
        refusals = [end for end in ends if {"PlanError", "UnsupportedError"} & {*end.kinds}]
        if refusals and all(end in refusals or end.kinds == ("Stopped",) for end in ends):
            return FamilyResult(FamilyStatus.REFUSED, _refusal(failed.text))
        return FamilyResult(FamilyStatus.ERROR, _summary(failed), trace=failed.trace)
    first: dict[str, Any] = ends[0].value
    share = max(end.value["local_elements"] / end.value["elements"] for end in ends)
    source = first["source"]
    if _within(ends, EXACT):
        return FamilyResult(FamilyStatus.EXACT, "", share, source)
    in_double = list(double()) if _within(ends, NOISE) else []
    if in_double and failure(in_double) is None and _within(in_double, EXACT_DOUBLE):
        return FamilyResult(FamilyStatus.EXACT, "in fp64", share, source)
    return FamilyResult(FamilyStatus.WRONG, _worst(ends), share, source)


def judge_peer(ends: Sequence[RankEnd]) -> FamilyResult:
    """Judge a run of a peer, by `loss`, `gradient` and `noise` (see `cases.compared`)."""
    failed = failure(list(ends))
    if failed is not None:
        verdict = {"NotRun": FamilyStatus.NOT_RUN, "PeerRefused": FamilyStatus.REFUSED}.get(
            failed.kinds[0], FamilyStatus.ERROR
        )
        return FamilyResult(verdict, _summary(failed), trace=failed.trace)
    share = max(end.value["local_elements"] / end.value["elements"] for end in ends)
    if share >= 1:
        return FamilyResult(FamilyStatus.NOTHING_CUT, share=share)
    for end in ends:
        limit = max(CLOSE, OVER_NOISE * end.value["noise"])
        for what, words in (("loss", "losses"), ("gradient", "gradients")):
            if not end.value[what] <= limit:
                return FamilyResult(FamilyStatus.WRONG, f"{words} off by {end.value[what]:.0e}", share)
    return FamilyResult(FamilyStatus.EXACT, share=share)


def better(first: FamilyResult, second: FamilyResult) -> FamilyResult:
    """Return the second of two results of a peer if it is exact, otherwise the first."""
    return second if second.verdict is FamilyStatus.EXACT else first


def _within(ends: Sequence[RankEnd], limit: float) -> bool:
    return all(end.value[what] < limit for end in ends for what in MEASURES)  # false for nan


def _worst(ends: Sequence[RankEnd]) -> str:
    errors = {what: max((end.value[what] for end in ends), key=lambda x: (x != x, x)) for what in MEASURES}
    where = ends[0].value.get("where", {})
    return ", ".join(
        f"{what} off by {error:.0e} {where.get(what, '')}".strip()
        for what, error in errors.items()
        if not error < EXACT
    )


def _refusal(text: str) -> str:
    """Return the first reason of a refusal, with the names of the layers before it replaced by their number."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0]
    names, colon, reason = line.partition(": ")
    listed = names.split(", ")
    if colon and not any(" " in name for name in listed):
        line = f"{listed[0]}{f' and {len(listed) - 1} more' if listed[1:] else ''}: {reason}"
    return _shortened(line, 2 * _SHORT)


def _summary(failed: RankEnd) -> str:
    lines = [line for line in failed.text.strip().splitlines() if line.strip()] or [""]
    kind = (
        "" if failed.kinds[0] in {"NotRun", "PeerRefused"} else f"{failed.kinds[0]}: "
    )  # their texts name another class
    return _shortened(kind + lines[0], _SHORT)


def _shortened(text: str, limit: int) -> str:
    """Return one line of at most `limit` characters without folders, addresses and temporary names."""
    text = re.sub(r"0x[0-9a-f]{6,}", "0x…", re.sub(r"(/[\w.+-]+){2,}", lambda found: found[0].rsplit("/", 1)[1], text))
    text = re.sub(r"tpinit-[a-z]+-\w+", "…", " ".join(text.split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"
