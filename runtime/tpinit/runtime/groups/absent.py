"""Which ranks did not come to a collective that failed: they are dead, or at something else."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch.distributed as dist
from tpinit.runtime.internals.torch_private import default_store

__all__ = ["absent_ranks"]

_WAIT = 2.0  # seconds: ranks notice a failure at about the same time
_POLL = 0.05


def absent_ranks(ranks: Sequence[int], place: str) -> list[int]:
    """Return the ranks of a group that do not call this for the same place, within two seconds.

    `place` names the collective that failed, equally on every rank that came to it. The ranks tell each other through
    the store of the world. Returns nothing if the store is gone with the rank that held it.
    """
    try:
        store, own = default_store(), dist.get_rank()
        store.set(f"tpinit/failed/{place}/{own}", "1")
        missing, deadline = [rank for rank in ranks if rank != own], time.monotonic() + _WAIT
        while missing and time.monotonic() < deadline:
            missing = [rank for rank in missing if not store.check([f"tpinit/failed/{place}/{rank}"])]
            time.sleep(_POLL if missing else 0)
    except (RuntimeError, ValueError):
        return []
    return missing
