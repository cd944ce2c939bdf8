"""Start torch.distributed from the environment that torchrun sets, and choose this rank's device."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from tpinit.reference.errors import TpinitError

__all__ = ["local_device", "start"]

_REQUIRED = ("RANK", "WORLD_SIZE", "MASTER_ADDR")


def start(distributed_port: int, dist_init_required: bool | None) -> None:
    """Start torch.distributed unless it runs already: with nccl if CUDA is available, else with gloo.

    The rank and the world size come from the environment that torchrun sets; `distributed_port` is the port if
    MASTER_PORT is not set. Without that environment this raises instead of making a world of one rank: N processes
    started without torchrun would otherwise train N separate models. `dist_init_required=False` means that the caller
    has already started torch.distributed.

    Raises TpinitError if there is neither a process group nor torchrun's environment.
    """
    if not dist.is_available():
        raise TpinitError("this build of torch has no torch.distributed: install a build that has it")
    if dist.is_initialized():
        return
    if dist_init_required is False:
        raise TpinitError(
            "dist_init_required=False, but torch.distributed is not initialised: call "
            "torch.distributed.init_process_group first, or leave dist_init_required out"
        )
    missing = [name for name in _REQUIRED if name not in os.environ]
    if missing:
        raise TpinitError(
            f"torch.distributed is not initialised, and the environment lacks {', '.join(missing)}: start the program "
            "with torchrun (one process: torchrun --nproc-per-node 1 program.py), or call "
            "torch.distributed.init_process_group before initialize"
        )
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(_local_index(int(os.environ["RANK"])))
    os.environ.setdefault("MASTER_PORT", str(distributed_port))
    dist.init_process_group("nccl" if cuda else "gloo")


def local_device(group: ProcessGroup | None = None) -> torch.device:
    """Return this rank's device: its CUDA device if the group's backend is nccl (default: the world), else the CPU."""
    if "nccl" in str(dist.get_backend(group)):
        torch.cuda.set_device(_local_index(dist.get_rank()))
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _local_index(rank: int) -> int:
    return int(os.environ.get("LOCAL_RANK", rank % torch.cuda.device_count()))
