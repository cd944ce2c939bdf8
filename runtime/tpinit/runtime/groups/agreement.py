"""Ranks compare what they were given before the model is changed, and raise the same error if they differ.

Each rank reports what it was given, as fields with plain values, and its error if it failed. A rank that fails still
takes part in this gather, so that the other ranks do not wait for it forever.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from tpinit.reference.errors import ConfigError, DecisionError
from tpinit.runtime.errors import AgreementError
from tpinit.runtime.groups.devices import message_device
from tpinit.runtime.groups.issuing import collective

__all__ = [
    "RankReport",
    "check_reports",
    "check_replicas",
    "describe_error",
    "flatten",
    "gather_reports",
    "read_report",
    "report_text",
]

_SHOWN = 12  # differing fields in an error
_LONG = 160  # characters of a value in an error


@dataclass(slots=True)
class RankReport:
    """What one rank reports: fields that must be equal on all ranks, its groups, and its error, if it failed.

    `replica` holds the fields that must be equal only on the ranks of one DP group: in row 2 another kind of model
    parallelism may have given the ranks different parts of the model. `tp_ranks` and `dp_ranks` are the global ranks of
    the groups that this rank was given; `tp_name` and `dp_name` are torch's names of them, which all members of one
    communicator share, and None for a list of ranks.
    """

    fields: dict[str, object] = field(default_factory=dict)
    replica: dict[str, object] = field(default_factory=dict)
    tp_ranks: tuple[int, ...] | None = None
    dp_ranks: tuple[int, ...] | None = None
    tp_name: str | None = None
    dp_name: str | None = None
    error: str | None = None


def gather_reports(
    report: RankReport, group: ProcessGroup | None = None, name: str = "what the ranks were given"
) -> list[RankReport]:
    """Return the reports of all ranks of a group (default: the world), in rank order. All of its ranks must call this.

    The ranks first gather a hash of the report, 32 bytes each. Only if the hashes differ do they gather the reports.
    `name` is that of these collectives in errors.
    """
    text = report_text(report)
    size = dist.get_world_size(group)
    if _all_equal(text, group, name):
        return [read_report(text)] * size
    gathered: list[str] = [""] * size
    collective("all_gather_object", name, gathered, text, group=group)
    return [read_report(other) for other in gathered]


def report_text(report: RankReport) -> str:
    """Return a report as JSON. A value that JSON has no form for is named by its type.

    A report that can't be written at all, because of a value of the user's, becomes one of that error.
    """
    try:
        return _to_json(report)
    except Exception as error:  # the other ranks wait for this rank's report
        return _to_json(RankReport(error=report.error or f"the report can't be written: {describe_error(error)}"))


def _to_json(report: RankReport) -> str:
    return json.dumps({one.name: getattr(report, one.name) for one in dataclasses.fields(report)}, default=_plain)


def read_report(text: str) -> RankReport:
    """Return the report that `report_text` wrote."""
    raw = json.loads(text)
    for name in ("tp_ranks", "dp_ranks"):
        raw[name] = tuple(raw[name]) if raw[name] is not None else None
    return RankReport(**raw)


def _all_equal(text: str, group: ProcessGroup | None, name: str) -> bool:
    """Return whether every rank of the group has this text, by one all-gather of its SHA-256."""
    sha256 = hashlib.sha256(text.encode()).digest()
    local = torch.tensor(list(sha256), dtype=torch.uint8, device=message_device(group))
    gathered = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    collective("all_gather", name, gathered, local, group=group)
    return all(torch.equal(other, local) for other in gathered)


def check_reports(
    reports: Sequence[RankReport],
    ranks: Sequence[int] | None = None,
    title: str = "ranks disagree, and nothing was changed",
) -> None:
    """Raise AgreementError, with the same text on every rank, unless all reports have equal fields and equal errors.

    `ranks` are the global ranks of the reports (default: 0, 1, ...); `title` is the first line of the error. If all
    ranks have the same error this returns, and each rank raises its own.
    """
    if all(report is reports[0] for report in reports):  # so `gather_reports` returns them if all ranks agree
        return
    ranks = list(ranks) if ranks is not None else list(range(len(reports)))
    errors_differ = len({report.error for report in reports}) > 1
    differing = _differing_fields(reports)
    if not errors_differ and not differing:
        return
    lines = [f"{title}:"]
    lines += [
        f"  {name}: {_by_value([_canonical(report.fields, name) for report in reports], ranks)}"
        for name in differing[:_SHOWN]
    ]
    if len(differing) > _SHOWN:
        lines.append(f"  and {len(differing) - _SHOWN} more fields")
    if errors_differ:
        lines += _error_lines(reports, ranks)
    raise AgreementError("\n".join(lines), [*differing, *(["error"] if errors_differ else [])])


def _differing_fields(reports: Sequence[RankReport]) -> list[str]:
    names = list(dict.fromkeys(name for report in reports for name in report.fields))
    if any(report.error is not None for report in reports):
        # A rank that failed has no fields from then on: only those that all ranks reported can be compared.
        names = [name for name in names if all(name in report.fields for report in reports)]
    return [name for name in names if len({_canonical(report.fields, name) for report in reports}) > 1]


def _error_lines(reports: Sequence[RankReport], ranks: Sequence[int]) -> list[str]:
    lines = [
        f"  rank {rank}: {report.error}"
        for rank, report in zip(ranks, reports, strict=True)
        if report.error is not None
    ]
    succeeded = [rank for rank, report in zip(ranks, reports, strict=True) if report.error is None]
    return [*lines, f"  {_rank_names(succeeded)}: no error"] if succeeded else lines


def check_replicas(reports: Sequence[RankReport], groups: Sequence[Sequence[int]]) -> bool:
    """Raise AgreementError, with the same text on every rank, unless `replica` is equal on the ranks of each group.

    Returns whether it is equal on all ranks.
    """
    for ranks in groups:
        check_reports([RankReport(reports[rank].replica) for rank in ranks], ranks)
    return all(report.replica == reports[0].replica for report in reports)


def describe_error(error: BaseException) -> str:
    """Return an error's text without what always differs between ranks: process groups, addresses of objects.

    An error whose own text can't be made is named by its type.
    """
    try:
        return _error_text(error)
    except Exception:  # the text is made by code of the user, and the other ranks wait for this rank's report
        return f"{type(error).__name__}: an error whose text can't be made"


def _error_text(error: BaseException) -> str:
    if isinstance(error, DecisionError):
        codes = ", ".join(violation.code.value for violation in error.decision.violations)
        return f"DecisionError: row {error.decision.row}: {codes}"
    if isinstance(error, ConfigError):
        problems = "; ".join(f"{problem.path}: {problem.message}" for problem in error.problems)
        return f"ConfigError: {problems}"
    return f"{type(error).__name__}: {error}"


def flatten(value: object, path: str) -> dict[str, object]:
    """Return the leaves of nested mappings and sequences by dotted path, so that an error can name what differs."""
    if isinstance(value, Mapping) and value:
        leaves: dict[str, object] = {}
        for key, inner in value.items():
            leaves.update(flatten(inner, f"{path}.{key}" if path else str(key)))
        return leaves
    if isinstance(value, (list, tuple)) and value:
        leaves = {}
        for index, inner in enumerate(value):
            leaves.update(flatten(inner, f"{path}[{index}]"))
        return leaves
    return {path: value}


def _plain(value: object) -> str:
    # Objects are compared by type: their addresses, and so their reprs, differ between processes.
    return f"<{type(value).__qualname__}>"


def _canonical(fields: Mapping[str, object], name: str) -> str:
    return json.dumps(fields[name], sort_keys=True) if name in fields else "absent"


def _by_value(values: Sequence[str], ranks: Sequence[int]) -> str:
    """Return which ranks have which value, in words; long values are cut to `_LONG` characters."""
    ranks_by_value: dict[str, list[int]] = {}
    for value, rank in zip(values, ranks, strict=True):
        ranks_by_value.setdefault(value if len(value) <= _LONG else value[:_LONG] + "...", []).append(rank)
    if len(ranks_by_value) == 1:
        return f"values on {_rank_names(ranks)} that differ after their first {_LONG} characters"
    return "; ".join(
        f"{_rank_names(holders)} {'has' if len(holders) == 1 else 'have'} {value}"
        for value, holders in ranks_by_value.items()
    )


def _rank_names(ranks: Sequence[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
