"""The ranks of a run save and load together: they compare what they do, and all raise the error of one."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import ProcessGroup
from tpinit.reference.errors import TpinitError
from tpinit.runtime.errors import AgreementError, CheckpointError
from tpinit.runtime.groups.agreement import RankReport, check_reports, describe_error, gather_reports
from tpinit.runtime.groups.issuing import collective
from tpinit.runtime.groups.process_groups import world_timeout
from tpinit.runtime.internals.torch_private import set_timeout

__all__ = ["agree", "checkpoint_group"]

_TIMEOUT = timedelta(hours=1)  # a rank may wait until another has written all of its part
_groups: weakref.WeakKeyDictionary[ProcessGroup, ProcessGroup] = weakref.WeakKeyDictionary()


def checkpoint_group() -> ProcessGroup | None:
    """Return a gloo group of all ranks, in which only checkpoints send; `initialize` makes it, on all ranks together.

    A background save sends there while the model trains. Without gloo it is the world's own group.
    """
    world = dist.group.WORLD
    if world is None or not dist.is_gloo_available() or "fake" in str(dist.get_backend()):
        return world
    if world not in _groups:
        _groups[world] = collective("new_group", "ranks that save and load", backend="gloo", timeout=world_timeout())
        set_timeout(_groups[world], _TIMEOUT)
    return _groups[world]


def agree(
    group: ProcessGroup | None, title: str, error: Exception | None = None, fields: Mapping[str, object] | None = None
) -> None:
    """Raise CheckpointError on all ranks, with one text, if one of them has an error or their fields differ.

    Every rank must call this. `title` begins the text if fields differ.
    """
    reports = gather_reports(RankReport(dict(fields or {}), error=_text(error)), group, "what the ranks save or load")
    texts: dict[str, list[int]] = {}
    for rank, report in enumerate(reports):
        if report.error is not None:
            texts.setdefault(report.error, []).append(rank)
    if len(texts) == 1:
        raise CheckpointError(next(iter(texts))) from error
    if texts:
        lines = [f"rank {', '.join(map(str, ranks))}: {text}" for text, ranks in texts.items()]
        raise CheckpointError("; ".join(lines)) from error
    try:
        check_reports(reports, title=title)
    except AgreementError as difference:
        raise CheckpointError(str(difference)) from difference


def _text(error: Exception | None) -> str | None:
    if error is None:
        return None
    return str(error) if isinstance(error, TpinitError) else describe_error(error)
