"""The world: torch.distributed, started from what torchrun put in the environment, and this rank's device."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from tpinit.reference.errors import TpinitError

__all__ = ["local_device", "start"]

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR")


def start(distributed_port: int, dist_init_required: bool | None) -> None:
    """Start torch.distributed unless it runs already; the backend follows the device (nccl, else gloo).

    Rank and world come from the environment that torchrun sets; `distributed_port` is used where MASTER_PORT
    is not set. A process without that environment is refused, not made a world of its own: N processes that
    forgot torchrun would otherwise each train alone. `dist_init_required=False` says that the caller has
    already started it.

    Raises TpinitError when there is neither an environment nor a process group.
    """
    if not dist.is_available():
        raise TpinitError("this build of torch has no torch.distributed: install one that has")
    if dist.is_initialized():
        return
    if dist_init_required is False:
        raise TpinitError(
            "dist_init_required=False, but torch.distributed is not initialised: call "
            "torch.distributed.init_process_group first, or leave dist_init_required out"
        )
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise TpinitError(
            f"no process group, and the environment lacks {', '.join(missing)}: start the program with "
            "torchrun (one process: torchrun --nproc-per-node 1 program.py), or call "
            "torch.distributed.init_process_group before initialize"
        )
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(_local_index(int(os.environ["RANK"])))
    os.environ.setdefault("MASTER_PORT", str(distributed_port))
    dist.init_process_group("nccl" if cuda else "gloo")


def local_device(group: ProcessGroup | None = None) -> torch.device:
    """Return this rank's device: its CUDA device under an nccl process group (default: the world), else the CPU."""
    if "nccl" in str(dist.get_backend(group)):
        torch.cuda.set_device(_local_index(dist.get_rank()))
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _local_index(rank: int) -> int:
    return int(os.environ.get("LOCAL_RANK", rank % torch.cuda.device_count()))
