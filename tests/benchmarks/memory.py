"""Peak memory of a piece of work: bytes that torch allocates, and resident memory of the process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

__all__ = ["Peak", "alive", "growth", "peak", "peak_of_tensors", "read_all", "resident", "trim_heap"]

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Peak:
    """Peaks in bytes. `tensors`: torch's allocator, earlier tensors included. `resident`: the process's memory.

    `read`: the process's memory after every element of its tensors was read. None if the system does not report it.
    """

    tensors: int
    resident: int | None
    read: int | None


def peak(work: Callable[[], object], reset: Callable[[], object] = lambda: None) -> Peak:
    """Run `work` twice, with `reset` in between, and return its peaks. It is slow: never use it in a timed step.

    The first run measures the process, the second one the tensors, because torch's profiler itself takes memory.
    """
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # reset the recorded peak of the process
    work()
    high = resident("VmHWM")
    read_all()
    read = resident("VmHWM")
    reset()
    gc.collect()
    return Peak(peak_of_tensors(work), high, read)


def peak_of_tensors(work: Callable[[], object]) -> int:
    """Run `work` and return the peak of torch's allocator in bytes, earlier tensors included."""
    before = alive()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    kineto: Any = seen.profiler and seen.profiler.kineto_results
    changes = [(event.start_ns(), event.nbytes()) for event in kineto.events() if event.name() == "[memory]"]
    level = most = 0
    for _, change in sorted(changes, key=lambda event: event[0]):
        level += change
        most = max(most, level)
    return before + most


def growth(work: Callable[[], object]) -> dict[str, int | None]:
    """Run `work` twice, and return by how many bytes its tensors and the process grew at the most."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    work()
    high = resident("VmHWM")
    gc.collect()
    held = alive()
    tensors = peak_of_tensors(work)
    known = None if before is None or high is None else max(0, high - before)
    return {"tensors": max(0, tensors - held), "resident": known}


def alive() -> int:
    """Return the bytes of all tensors that Python can reach, counting each storage once."""
    storages: dict[int, int] = {}
    for tensor in _tensors():
        with contextlib.suppress(RuntimeError, NotImplementedError):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def read_all() -> None:
    """Read every element of all tensors that Python can reach, so that mapped files are in memory.

    The base of a view is not read: the parts outside its views are not used.
    """
    found = _tensors()
    bases = {id(tensor._base) for tensor in found if tensor._is_view()}
    for tensor in found:
        if id(tensor) in bases:
            continue
        with contextlib.suppress(RuntimeError, NotImplementedError):
            tensor.detach().flatten().view(torch.uint8).amax()


def _tensors() -> list[torch.Tensor]:
    # `type` and not `isinstance`, which makes lazy modules of transformers import their content.
    kinds = ((candidate, type(candidate)) for candidate in gc.get_objects())
    found = [tensor for tensor, kind in kinds if issubclass(kind, torch.Tensor) and not issubclass(kind, DTensor)]
    return [tensor for tensor in found if tensor.device.type == "cpu"]


def trim_heap() -> None:
    """Return free memory of the C library's heap to the system, so that growth is due to the next model only."""
    with contextlib.suppress(AttributeError):  # only glibc has malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


def resident(field: str = "VmRSS") -> int | None:
    """Return the process's resident memory in bytes, None if the system does not report it."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)
