"""Start torch.distributed from the environment that torchrun sets, and end it again if it was started here."""

from __future__ import annotations

import atexit
import os
import sys
from datetime import timedelta
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from tpinit.reference.errors import TpinitError
from tpinit.reference.spellings import show
from tpinit.runtime.groups.devices import initial_device, use

__all__ = ["end", "read_timeout", "start", "started_here"]

_REQUIRED = ("RANK", "WORLD_SIZE", "MASTER_ADDR")
# The world that `start` made, while it lives. It is held weakly, since a group of gloo has threads: one that drops a
# tensor while the interpreter ends aborts the process.
_started: WeakSet[ProcessGroup] = WeakSet()


def read_timeout(timeout: object) -> timedelta | None:
    """Return the keyword `timeout` of `initialize`: seconds or a timedelta; None if it was not given.

    Raises TpinitError for anything else, and for a time that is not above 0.
    """
    if timeout is None:
        return None
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and 0 < timeout < float("inf")
    if number:
        return timedelta(seconds=float(timeout))  # type: ignore[arg-type]  # a number, as just checked
    if isinstance(timeout, timedelta) and timeout > timedelta(0):
        return timeout
    raise TpinitError(f"timeout is {show(timeout)}, and must be seconds above 0, or a datetime.timedelta")


def start(
    distributed_port: int,
    dist_init_required: bool | None,
    timeout: timedelta | None = None,
    model: nn.Module | None = None,
) -> None:
    """Start torch.distributed unless it runs already.

    With an accelerator its own backend (nccl for CUDA) sends its tensors, and gloo those of the CPU; the communicators
    are made at once, on the device that this rank trains on (`device_id`). Without one, gloo. The rank and the world
    size come from the environment that torchrun sets; `distributed_port` is the port if MASTER_PORT is not set. Without
    that environment this raises instead of making a world of one rank: N processes started without torchrun would
    otherwise train N separate models. `dist_init_required=False` means that the caller has already started
    torch.distributed. `timeout` is that of every collective; torch's default without it.

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
    os.environ.setdefault("MASTER_PORT", str(distributed_port))
    _init(initial_device(model, int(os.environ["RANK"])), timeout)
    world = dist.group.WORLD
    assert world is not None
    _started.add(world)
    atexit.unregister(_end_at_exit)
    atexit.register(_end_at_exit)


def _init(device: torch.device, timeout: timedelta | None) -> None:
    found = _store_of_restart(timeout)
    if device.type == "cpu":
        dist.init_process_group("gloo", timeout=timeout, **found)
        return
    use(device)
    backend = dist.get_default_backend_for_device(device.type)
    dist.init_process_group(f"cpu:gloo,{device.type}:{backend}", timeout=timeout, device_id=device, **found)


def _store_of_restart(timeout: timedelta | None) -> dict[str, Any]:
    """Return the store, rank and world size of ranks that torchrun has started again; nothing at a first start.

    The store lives in torchrun, and has the addresses of the ranks that ended: a rank that reads one before its new
    owner has replaced it waits for the time-out. So each start gets names of its own. Over several hosts the number of
    the start differs between them, and torch's own way is left as it is.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    on_one_host = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    if restart == "0" or not on_one_host or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    store, rank, size = next(iter(rendezvous("env://")))
    if timeout is not None:
        store.set_timeout(timeout)
    return {"store": PrefixStore(f"tpinit/start {restart}", store), "rank": rank, "world_size": size}


def started_here() -> bool:
    """Return whether `start` made the present world."""
    return dist.is_initialized() and dist.group.WORLD in _started


def end() -> None:
    """Destroy all process groups if `start` made the world; does nothing in a world of the caller's."""
    if started_here():
        dist.destroy_process_group()


def _end_at_exit() -> None:
    """End the world when the program does. Not after an error: other ranks may wait in a collective, and so would we.

    NCCL warns of a world that was not destroyed, and may lose what it still sends.
    """
    if getattr(sys, "last_value", None) is None:
        end()
