"""Small implementations with one defect each, or none, to test the kit: it must report each defect as what it is.

The kit asks them through the same adapters as any implementation. `MINIATURES` has the --impl value of each and the
expected report. To run one: `tpinit conform --impl 'py: tpinit.conformance.miniatures.answering:always_wrong'`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tpinit.conformance.report import CaseStatus

__all__ = ["MINIATURES", "Miniature"]


@dataclass(frozen=True, slots=True)
class Miniature:
    """One implementation: its value for `tpinit conform --impl`, and the expected report.

    `verdicts` is the exact set of statuses in the report on the smoke subset; `exit_code` is that of the run.
    """

    name: str
    spelled: str
    verdicts: frozenset[CaseStatus]
    exit_code: int


def _served(name: str) -> str:
    return f"py: {__name__}.{name}"


def _ranks(name: str) -> str:
    return f"ranks: '{sys.executable}' -m tpinit.conformance.server {__name__}.worlds:{name}"


_V = CaseStatus
MINIATURES: dict[str, Miniature] = {
    name: Miniature(name, spelled, frozenset(verdicts), exit_code)
    for name, spelled, verdicts, exit_code in (
        ("always right", _served("answering:always_right"), {_V.AGREED}, 0),
        ("always wrong", _served("answering:always_wrong"), {_V.DISAGREED}, 1),
        # It answers all vectors rightly; only a search finds the wrong integer.
        ("wrong in one magic integer", _served("answering:wrong_in_one_integer"), {_V.AGREED}, 0),
        ("permissive and says so", _served("answering:permissive"), {_V.AGREED, _V.PERMITTED}, 0),
        ("lies about its dialect", _served("answering:permissive_in_secret"), {_V.AGREED, _V.DISAGREED}, 1),
        ("speaks any dialect", _served("answering:SpeaksAnything"), {_V.NOT_RUN}, 4),
        ("answers a part", _served("answering:outcome_only"), {_V.AGREED}, 0),
        ("skips everything", _served("answering:skips"), {_V.SKIPPED}, 4),
        ("raises", _served("answering:raises"), {_V.AGREED, _V.ERRORED}, 4),
        ("changes its input", _served("answering:changes_its_input"), {_V.AGREED, _V.DISAGREED}, 1),
        ("leaks state", _served("misbehaving:leaks_state"), {_V.AGREED, _V.UNSTABLE}, 4),
        ("crashes", _served("misbehaving:crashes"), {_V.AGREED, _V.CRASHED}, 4),
        ("hangs", _served("misbehaving:hangs"), {_V.AGREED, _V.TIMED_OUT}, 4),
        ("answers garbage", _served("misbehaving:answers_garbage"), {_V.AGREED, _V.GARBAGE}, 4),
        ("always right on every rank", _ranks("always_right"), {_V.AGREED}, 0),
        ("hangs on one rank", _ranks("hangs_on_one_rank"), {_V.AGREED, _V.TIMED_OUT}, 4),
        ("crashes on one rank", _ranks("crashes_on_one_rank"), {_V.AGREED, _V.CRASHED}, 4),
        ("ranks disagree", _ranks("ranks_disagree"), {_V.AGREED, _V.DISAGREED}, 1),
    )
}
