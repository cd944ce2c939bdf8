"""Ranks that hang or die."""

from __future__ import annotations

import os
import time

import torch.distributed as dist


def hang(rank: int) -> None:
    """One rank never comes: the launcher must end all of them."""
    if rank == 0:
        dist.barrier()
    else:
        time.sleep(3600)


def die(rank: int) -> None:
    """One rank ends without an answer."""
    if rank == 1:
        os._exit(7)
    dist.barrier()
