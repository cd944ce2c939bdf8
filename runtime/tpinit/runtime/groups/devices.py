"""The device of this rank: which one its model is moved to, why, and where small messages between ranks are sent.

The device follows from the model, the mesh, the process group and the launcher's environment, in this order. A GPU that
the caller selected with `torch.cuda.set_device` is kept.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from tpinit.runtime.errors import DeviceError

__all__ = [
    "Accelerator",
    "DeviceChoice",
    "autocast_dtype",
    "backends",
    "choose_device",
    "exclusive",
    "find_accelerator",
    "initial_device",
    "launched_index",
    "message_device",
    "peer_device",
    "use",
]

_LOCAL_RANKS = (
    "LOCAL_RANK",  # torchrun, accelerate, deepspeed
    "SLURM_LOCALID",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "PALS_LOCAL_RANKID",
)
_EXCLUSIVE = ("nccl", "xccl", "hccl")  # backends that need one device for each process
_HOST = ("cpu", "meta")


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """The device of this rank and the reason for it, a clause of a sentence. `backend` sends its tensors."""

    device: torch.device
    reason: str
    backend: str = ""
    warning: str | None = None

    def __str__(self) -> str:
        sent = f", sent with {self.backend}" if self.backend else ""
        return f"{self.device}{sent}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """The kind of accelerator of this host (`cuda`, `xpu`), and how many of them this process can use."""

    kind: str
    count: int

    @property
    def current(self) -> int:
        """The index of the current device of this thread."""
        return int(_module(self.kind).current_device())


def _module(kind: str) -> Any:
    return torch.get_device_module(kind)


def find_accelerator() -> Accelerator | None:
    """Return the accelerator that this process can use; None if there is none."""
    if torch.cuda.is_available():
        return Accelerator("cuda", torch.cuda.device_count())
    if not torch.accelerator.is_available():
        return None
    found = torch.accelerator.current_accelerator()
    assert found is not None, "an accelerator is available"
    return Accelerator(found.type, torch.accelerator.device_count())


def backends(group: ProcessGroup | None = None) -> dict[str, str]:
    """Return the backend of a group (default: the world) for each kind of device that it serves.

    A group that was made without a backend has the name `undefined`, but its configuration names the backends.
    """
    pairs = [pair.partition(":") for pair in str(dist.get_backend_config(group)).split(",")]
    return {kind: backend for kind, colon, backend in pairs if colon}


def message_device(group: ProcessGroup | None = None) -> torch.device:
    """Return where the tensors of small messages must be: the CPU if the group serves it, else the current device."""
    served = backends(group)
    if "cpu" in served or not served:
        return torch.device("cpu")
    kind = next(iter(served))
    return torch.device(kind, _module(kind).current_device())


def peer_device(group: ProcessGroup | None, device: torch.device) -> torch.device:
    """Return where a tensor of this device must be to be sent from rank to rank: gloo does that in host memory only."""
    return torch.device("cpu") if backends(group).get(device.type) == "gloo" else device


def autocast_dtype(kind: str) -> torch.dtype | None:
    """Return the dtype of torch.autocast on this kind of device; None if it is off, or if the kind has none (meta)."""
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def exclusive(backend: str) -> bool:
    """Return whether a backend needs a device of its own for each process."""
    return backend in _EXCLUSIVE


def launched_index(count: int, rank: int) -> tuple[int, str]:
    """Return the index of the device that the launcher meant for this process, and the reason.

    `count` devices are visible. A launcher may make only one of them visible to each process (Slurm's
    --gpus-per-task, Ray); the index is therefore the local rank modulo the count.
    """
    name = next((name for name in _LOCAL_RANKS if os.environ.get(name, "").isdecimal()), None)
    local = int(os.environ[name]) if name is not None else rank
    source = f"{name}={local}" if name is not None else f"rank {rank}, and no launcher set LOCAL_RANK"
    return local % count, f"{source}, {count} visible"


def use(device: torch.device) -> None:
    """Make an accelerator the current device, if another one is; nothing for the CPU."""
    if device.type not in _HOST:
        module = _module(device.type)
        if device.index is not None and module.current_device() != device.index:
            module.set_device(device.index)


def choose_device(model: nn.Module | None, mesh: object = None, group: ProcessGroup | None = None) -> DeviceChoice:
    """Return the device of this rank. `model` is None if it is built later; `group` is the world by default.

    1. A model on an accelerator stays on that kind of device; so does a mesh's `device_type`.
    2. Otherwise, if the group has the accelerator's own backend (nccl for CUDA), the model goes to the accelerator.
    3. Otherwise the CPU, if the group serves it; with a warning if an accelerator is visible.

    Raises DeviceError if the model, the mesh and the group contradict each other, if the group can't send tensors of
    that device, and if no such device is visible.
    """
    served, accelerator = backends(group), find_accelerator()
    held = _held(model)
    kind, reason = _kind(held, mesh, served, accelerator)
    if kind not in served:
        raise DeviceError(
            f"{reason}, and the process group sends only {_shown(served)} tensors: start it with "
            f'torch.distributed.init_process_group("{_both(kind)}"), or leave that to initialize'
        )
    if kind in _HOST:
        warning = None
        if accelerator is not None:
            warning = (
                f"{accelerator.count} {accelerator.kind} device(s) are visible, and training runs on the CPU: {reason}"
            )
        return DeviceChoice(torch.device("cpu"), reason, served[kind], warning)
    if accelerator is None or accelerator.kind != kind or not accelerator.count:
        raise DeviceError(
            f"{reason}, but this process sees no {kind} device: check the launcher, the driver and "
            f"{'CUDA_VISIBLE_DEVICES' if kind == 'cuda' else 'the devices that it makes visible'}, or use a gloo group "
            "for the CPU"
        )
    bound = dist.group.WORLD.bound_device_id if dist.group.WORLD is not None else None
    index, why = _choose_index(accelerator, held, bound, served[kind], dist.get_rank())
    reason = reason if why == reason else f"{reason}; {why}"
    return DeviceChoice(torch.device(kind, index), reason, served[kind], _slow(kind, served[kind]))


def initial_device(model: nn.Module | None, rank: int) -> torch.device:
    """Return the device with which to start torch.distributed: an accelerator of this process, else the CPU.

    Raises DeviceError for a model on several devices.
    """
    accelerator, held = find_accelerator(), _held(model)
    backend = _default_backend(accelerator.kind) if accelerator is not None else None
    if accelerator is None or not accelerator.count or backend is None or not dist.is_backend_available(backend):
        return torch.device("cpu")
    return torch.device(accelerator.kind, _choose_index(accelerator, held, None, backend, rank)[0])


def _held(model: nn.Module | None) -> torch.device | None:
    """Return the device of a model that has values: an accelerator if a part of it is there; None for a new model."""
    if model is None:
        return None
    tensors = [*model.parameters(), *model.buffers()]
    found = list(dict.fromkeys(tensor.device for tensor in tensors if not tensor.is_meta))
    on_accelerator = [device for device in found if device.type not in _HOST]
    if len(on_accelerator) > 1:
        raise DeviceError(
            f"the model's parameters are on {', '.join(map(str, on_accelerator))}, and each rank trains on one device: "
            "load the model without device_map, or move it to one device"
        )
    return next(iter(on_accelerator or found), None)


def _kind(
    held: torch.device | None, mesh: object, served: dict[str, str], accelerator: Accelerator | None
) -> tuple[str, str]:
    """Return the kind of device and the reason. Raises DeviceError if the model and the mesh contradict each other."""
    wanted = mesh.device_type if isinstance(mesh, DeviceMesh) else None
    on_accelerator = held is not None and held.type not in _HOST
    if held is not None and on_accelerator:
        if wanted not in (None, held.type):
            raise DeviceError(
                f"the model is on {held}, and the mesh is one of {wanted} devices: move the model, or make the mesh "
                f'with init_device_mesh("{held.type}", ...)'
            )
        return held.type, f"the model is on {held}"
    if wanted is not None:
        return wanted, f"the mesh is one of {wanted} devices"
    if accelerator is not None and served.get(accelerator.kind) == _default_backend(accelerator.kind):
        return accelerator.kind, f"the process group sends {accelerator.kind} tensors with {served[accelerator.kind]}"
    if "cpu" in served:
        return "cpu", f"the model is on the CPU, and the process group's backend is {_shown(served)}"
    kind = next(iter(served), "cpu")
    return kind, f"the process group sends {kind} tensors with {served.get(kind, 'no backend')}"


def _choose_index(
    accelerator: Accelerator, held: torch.device | None, bound: torch.device | None, backend: str, rank: int
) -> tuple[int, str]:
    """Return which of the visible accelerators is this rank's, and the reason.

    An index other than 0 was chosen by somebody: by `init_process_group(device_id=...)`, by the caller's set_device, or
    where the model was put. Index 0 is also torch's default, so with a backend that needs a device for each process the
    launcher's local rank decides then. Raises DeviceError if two of them chose different devices.
    """
    at = held.index if held is not None and held.type == accelerator.kind else None
    current = accelerator.current
    chosen = {
        f"init_process_group(device_id=...) chose {bound}": bound.index if bound is not None else None,
        f"the caller's set_device chose {accelerator.kind}:{current}": current or None,
        f"the model is on {held}": at or None,
    }
    found = {why: index for why, index in chosen.items() if index is not None}
    if len(set(found.values())) > 1:
        raise DeviceError(
            f"the device of rank {rank} is not clear: {', and '.join(found)}; choose one device, with "
            f"torch.{accelerator.kind}.set_device before the model is moved"
        )
    if found:
        why, index = next(iter(found.items()))
        return index, why
    if at is not None and not exclusive(backend):
        return at, f"the model is on {held}"
    return launched_index(accelerator.count, rank)


def _default_backend(kind: str) -> str | None:
    try:
        return dist.get_default_backend_for_device(kind)
    except ValueError:
        return None


def _slow(kind: str, backend: str) -> str | None:
    return f"{backend} copies every {kind} tensor through host memory, which is slow" if backend == "gloo" else None


def _shown(served: dict[str, str]) -> str:
    return ", ".join(f"{kind} ({backend})" for kind, backend in sorted(served.items())) or "no"


def _both(kind: str) -> str:
    backend = _default_backend(kind) or "gloo"
    return backend if kind == "cpu" else f"cpu:gloo,{kind}:{backend}"
