"""The ranks of a run save and load together: they compare what they do, and all raise the error of one."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup
from tpinit.reference.errors import TpinitError
from tpinit.runtime.errors import AgreementError, CheckpointError
from tpinit.runtime.groups import protocol
from tpinit.runtime.groups.agreement import RankReport, check_reports, describe_error, gather_reports
from tpinit.runtime.groups.issuing import collective
from tpinit.runtime.groups.process_groups import world_timeout
from tpinit.runtime.internals.torch_private import set_timeout

__all__ = ["agree", "checkpoint_group", "on_first_rank"]

T = TypeVar("T")

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


def agree(step: str, work: Callable[[RankReport], T]) -> T:
    """Do one step on this rank and return what `work` returned. Every rank must call this.

    `work` adds to its report what must be equal. Raises CheckpointError on all ranks, with one text, if `work` fails on
    one of them or the reports differ.
    """
    gather = partial(gather_reports, group=checkpoint_group(), name=f'the reports after "{step}"')
    result, _ = protocol.run(protocol.agree(step, work, partial(_check, step), gather, _text))
    return result


def on_first_rank(what: str, action: Callable[[], T]) -> T | None:
    """Run an action that writes `what` on rank 0, and return there what it returned. Every rank must call this.

    Raises CheckpointError on all ranks if it fails.
    """

    def act(_: RankReport) -> T | None:
        if dist.get_rank() != 0:
            return None
        try:
            return action()
        except OSError as failure:
            raise CheckpointError(f"{what} could not be written: {failure}") from failure

    return agree(what, act)


def _check(step: str, reports: Sequence[RankReport]) -> None:
    texts: dict[str, list[int]] = {}
    for rank, report in enumerate(reports):
        if report.error is not None:
            texts.setdefault(report.error, []).append(rank)
    if len(texts) == 1:
        raise CheckpointError(next(iter(texts)))
    if texts:
        raise CheckpointError("; ".join(f"rank {', '.join(map(str, ranks))}: {text}" for text, ranks in texts.items()))
    try:
        check_reports(reports, title=f"{step}: the ranks differ, and nothing was changed")
    except AgreementError as difference:
        raise CheckpointError(str(difference)) from difference


def _text(error: BaseException) -> str:
    return str(error) if isinstance(error, TpinitError) else describe_error(error)
