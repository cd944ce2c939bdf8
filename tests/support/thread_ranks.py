"""Ranks as threads of one process, over real gloo: for single-process tests of code that sends collectives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup, distributed_c10d
from tpinit.runtime.groups.process_groups import GroupView

T = TypeVar("T")

_TIMEOUT = timedelta(seconds=20)


def over_ranks(size: int, work: Callable[[GroupView], T]) -> list[T]:
    """Call `work` on each rank of a group of its own, in a thread each; return what the ranks returned, in rank order.

    Raises the error of the first rank that failed.
    """
    store = dist.HashStore()
    results: list[Any] = [None] * size
    errors: list[BaseException | None] = [None] * size

    def run(rank: int) -> None:
        view = _view(store, rank, size)
        try:
            results[rank] = work(view)
        except BaseException as error:  # it is raised in the test's thread
            errors[rank] = error
        finally:
            _forget(view)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * _TIMEOUT.total_seconds())
    failed = next((error for error in errors if error is not None), None)
    if failed is not None:
        raise failed
    assert not any(thread.is_alive() for thread in threads), "a rank waits for a collective that another never sent"
    return results


def _view(store: dist.Store, rank: int, size: int) -> GroupView:
    if size == 1:
        return GroupView((0,), 0, None)
    group = ProcessGroup(store, rank, size)
    backend = dist.ProcessGroupGloo(dist.PrefixStore("ranks", store), rank, size, _TIMEOUT)
    group._register_backend(torch.device("cpu"), ProcessGroup.BackendType.GLOO, backend)
    # What torch.distributed asks of a group that it has not made itself.
    world = distributed_c10d._world
    world.pg_group_ranks[group] = {member: member for member in range(size)}
    world.pg_map[group] = (dist.Backend("gloo"), store)
    world.pg_backend_config[group] = "cpu:gloo"
    return GroupView(tuple(range(size)), rank, group, group)


def _forget(view: GroupView) -> None:
    world = distributed_c10d._world
    for known in (world.pg_group_ranks, world.pg_map, world.pg_backend_config):
        known.pop(view.group, None)  # type: ignore[attr-defined]  # three dicts by group
