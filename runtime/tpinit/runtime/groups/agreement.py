"""Ranks agree before anything is cut: one gather over the world, then the same verdict on every rank.

Each rank reports what it was given, as fields with plain values, and what went wrong there, if anything did.
Whatever happens on a rank, it comes to this gather, so no other rank waits for it in vain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from tpinit.reference.errors import ConfigError, DecisionError
from tpinit.runtime.errors import AgreementError
from tpinit.runtime.groups.world import local_device

__all__ = ["RankReport", "check_reports", "check_replicas", "gather_reports", "flatten", "describe_error"]

_SHOWN = 12
_LONG = 160


@dataclass(slots=True)
class RankReport:
    """What one rank brings: fields that must be equal on all, groups that need not be, and its error.

    `replica` holds fields that only ranks which average together must have in common: in row 2 another
    kind of model parallelism may have given other ranks another part of the model.
    """

    fields: dict[str, object] = field(default_factory=dict)
    replica: dict[str, object] = field(default_factory=dict)
    tp_ranks: tuple[int, ...] | None = None
    dp_ranks: tuple[int, ...] | None = None
    error: str | None = None


def gather_reports(report: RankReport, group: ProcessGroup | None = None) -> list[RankReport]:
    """Return the reports of all ranks, in rank order. Every rank of the group must call this.

    Ranks that agree in everything, as they should, send each other no more than a hash of it.
    """
    text = json.dumps(
        {
            "fields": report.fields,
            "replica": report.replica,
            "tp_ranks": report.tp_ranks,
            "dp_ranks": report.dp_ranks,
            "error": report.error,
        },
        default=_plain,
    )
    ranks = dist.get_world_size(group)
    if _all_have(text, group):
        return [_read(text)] * ranks
    gathered: list[str] = [""] * ranks
    dist.all_gather_object(gathered, text, group=group)
    return [_read(one) for one in gathered]


def _all_have(text: str, group: ProcessGroup | None) -> bool:
    """Tell whether every rank of the group has this text, by one gather of 32 bytes of each."""
    digest = hashlib.sha256(text.encode()).digest()
    own = torch.tensor(list(digest), dtype=torch.uint8, device=local_device(group))
    every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, own, group=group)
    return all(torch.equal(one, own) for one in every)


def check_reports(reports: Sequence[RankReport], ranks: Sequence[int] | None = None) -> None:
    """Raise AgreementError, equal on every rank, unless all reports have equal fields and equal errors.

    `ranks` are the global ranks of the reports (default: 0, 1, ...). Where all ranks have the same error
    this passes: the caller raises its own.
    """
    if all(report is reports[0] for report in reports):  # as `gather_reports` gives them where all ranks agree
        return
    numbers = list(ranks) if ranks is not None else list(range(len(reports)))
    failed = len({report.error for report in reports}) > 1
    if not failed and len({json.dumps(report.fields) for report in reports}) == 1:
        return
    names = list(dict.fromkeys(name for report in reports for name in report.fields))
    if any(report.error is not None for report in reports):
        # A rank that failed stopped reporting where it failed: only what all have can be compared.
        names = [name for name in names if all(name in report.fields for report in reports)]
    differing = [name for name in names if len({_canonical(report.fields, name) for report in reports}) > 1]
    if not failed and not differing:
        return
    lines = ["ranks disagree, and nothing was changed:"]
    lines += [
        f"  {name}: {_by_value([_canonical(report.fields, name) for report in reports], numbers)}"
        for name in differing[:_SHOWN]
    ]
    if len(differing) > _SHOWN:
        lines.append(f"  and {len(differing) - _SHOWN} more fields")
    if failed:
        lines += [
            f"  rank {number}: {report.error}"
            for number, report in zip(numbers, reports, strict=True)
            if report.error is not None
        ]
        fine = [number for number, report in zip(numbers, reports, strict=True) if report.error is None]
        if fine:
            lines.append(f"  {_ranks(fine)}: no error")
    raise AgreementError("\n".join(lines), [*differing, *(["error"] if failed else [])])


def check_replicas(reports: Sequence[RankReport], groups: Sequence[Sequence[int]]) -> bool:
    """Raise AgreementError, equal on every rank, unless the ranks of each group hold the same replica.

    Returns whether all groups hold the same one.
    """
    for ranks in groups:
        check_reports([RankReport(reports[rank].replica) for rank in ranks], ranks)
    return all(report.replica == reports[0].replica for report in reports)


def describe_error(error: Exception) -> str:
    """Return an error's words without what differs between ranks by nature: groups, addresses of objects."""
    if isinstance(error, DecisionError):
        codes = ", ".join(violation.code.value for violation in error.decision.violations)
        return f"DecisionError: row {error.decision.row}: {codes}"
    if isinstance(error, ConfigError):
        problems = "; ".join(f"{one.path}: {one.message}" for one in error.problems)
        return f"ConfigError: {problems}"
    return f"{type(error).__name__}: {error}"


def flatten(value: object, path: str) -> dict[str, object]:
    """Return the leaves of nested mappings and sequences, by dotted path: so a difference has an address."""
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
    # Objects compare by type: their identities, and so their reprs, differ between processes.
    return f"<{type(value).__qualname__}>"


def _read(text: str) -> RankReport:
    raw = json.loads(text)
    tp_ranks, dp_ranks = raw["tp_ranks"], raw["dp_ranks"]
    return RankReport(
        raw["fields"],
        raw["replica"],
        tuple(tp_ranks) if tp_ranks is not None else None,
        tuple(dp_ranks) if dp_ranks is not None else None,
        raw["error"],
    )


def _canonical(fields: Mapping[str, object], name: str) -> str:
    return json.dumps(fields[name], sort_keys=True) if name in fields else "absent"


def _by_value(values: Sequence[str], numbers: Sequence[int]) -> str:
    holders: dict[str, list[int]] = {}
    for value, number in zip(values, numbers, strict=True):
        holders.setdefault(value if len(value) <= _LONG else value[:_LONG] + "...", []).append(number)
    if len(holders) == 1:
        return "values that differ after their first characters, on " + _ranks(list(numbers))
    return "; ".join(
        f"{_ranks(ranks)} {'has' if len(ranks) == 1 else 'have'} {value}" for value, ranks in holders.items()
    )


def _ranks(numbers: Sequence[int]) -> str:
    return ("rank " if len(numbers) == 1 else "ranks ") + ", ".join(map(str, numbers))
