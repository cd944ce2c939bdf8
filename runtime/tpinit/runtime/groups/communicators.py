"""The ranks of a group hold one communicator (D12): found by torch's name of it, and by one small collective in it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from tpinit.runtime.errors import AgreementError, CollectiveError, GroupError
from tpinit.runtime.groups.devices import message_device
from tpinit.runtime.groups.issuing import collective

__all__ = ["check_names", "communicator_name", "handle_kind", "try_group"]

_PATIENCE = timedelta(seconds=20)  # of the trial in a group, whatever the group's own time-out is


def communicator_name(group: object) -> str | None:
    """Return torch's name of a communicator, equal on all of its ranks and of no other one; None for anything else."""
    return str(group.group_name) if isinstance(group, ProcessGroup) else None


def handle_kind(group: object) -> str | None:
    """Return the kind of a group that was given, in words: all ranks must give one kind."""
    if group is None:
        return None
    return "a communicator" if isinstance(group, ProcessGroup) else "a list of ranks"


def check_names(what: str, groups: Sequence[Sequence[int]], names: Sequence[str | None]) -> None:
    """Raise AgreementError, alike on all ranks, unless the ranks of each group gave communicators of one name.

    `what` names the groups in the error; `names` are the names that each rank of the world has.
    """
    for ranks in groups:
        given: dict[str | None, list[int]] = {}
        for rank in ranks:
            given.setdefault(names[rank], []).append(rank)
        if len(given) > 1:
            held = "; ".join(
                f"rank{'s' if len(holders) > 1 else ''} {', '.join(map(str, holders))}: torch's group {name}"
                for name, holders in given.items()
            )
            raise AgreementError(
                f"the ranks of {what} hold different communicators over the same ranks {list(ranks)}, and nothing was "
                f"changed (D12): {held}\n  fix: give on every rank the group that one and the same call of "
                "torch.distributed.new_group returned",
                [what],
            )


def try_group(what: str, group: ProcessGroup) -> None:
    """Run one small all-gather in a group that was given. All of its ranks must call this.

    Raises GroupError if it does not come to an end within 20 seconds, or the group's own time-out if that is shorter.
    """
    local = torch.tensor([dist.get_rank(group)], device=message_device(group))
    gathered = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    try:
        collective("all_gather", f"a trial of {what}", gathered, local, group=group, async_op=True).wait(_PATIENCE)
    except CollectiveError as error:
        raise GroupError(
            f"{what}: a small all-gather in it failed ({error.reason}): is one of its ranks gone, or its communicator "
            "destroyed?"
        ) from error
    found = [int(one) for one in gathered]
    if found != list(range(len(found))):
        raise GroupError(f"{what}: its ranks call themselves {found}, and must be 0 to {len(found) - 1} in order")
