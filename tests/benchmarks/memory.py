"""How much memory something takes: what torch allocates, byte by byte, and what the process holds at its peak."""

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

__all__ = ["Peak", "alive", "give_back", "peak", "read_all", "resident"]

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Peak:
    """`tensors`: bytes of torch's allocator, those alive before included. `resident`: bytes of the process, or None.

    `read`: bytes of the process once every number of its tensors has been read, or None.
    """

    tensors: int
    resident: int | None
    read: int | None


def peak(work: Callable[[], object], again: Callable[[], object] = lambda: None) -> Peak:
    """Run `work` twice, `again` between, and return its peaks. Slow, and so never part of what is timed.

    The process is looked at first: what torch's profiler writes down of each allocation is memory too.
    """
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the process starts again from here
    work()
    high = resident("VmHWM")
    read_all()
    read = resident("VmHWM")
    again()
    gc.collect()
    before = alive()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    kineto: Any = seen.profiler and seen.profiler.kineto_results
    changes = [(event.start_ns(), event.nbytes()) for event in kineto.events() if event.name() == "[memory]"]
    level = most = 0
    for _, change in sorted(changes, key=lambda one: one[0]):
        level += change
        most = max(most, level)
    return Peak(before + most, high, read)


def alive() -> int:
    """Return the bytes of all tensors that Python can reach, each storage once."""
    storages: dict[int, int] = {}
    for one in _tensors():
        with contextlib.suppress(RuntimeError, NotImplementedError):
            storage = one.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def read_all() -> None:
    """Read every number of all tensors that Python can reach: what only points to a file is in memory then."""
    found = _tensors()
    whole = {id(one._base) for one in found if one._is_view()}  # what a view does not show of it, nobody asked for
    for one in found:
        if id(one) in whole:
            continue
        with contextlib.suppress(RuntimeError, NotImplementedError):
            one.detach().flatten().view(torch.uint8).amax()


def _tensors() -> list[torch.Tensor]:
    # `type` and not `isinstance`: lazy modules of transformers answer the latter by importing.
    kinds = ((one, type(one)) for one in gc.get_objects())
    found = [one for one, kind in kinds if issubclass(kind, torch.Tensor) and not issubclass(kind, DTensor)]
    return [one for one in found if one.device.type == "cpu"]


def give_back() -> None:
    """Return what an earlier model left free in the C library's heap, so that the next one's growth is its own."""
    with contextlib.suppress(AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def resident(field: str = "VmRSS") -> int | None:
    """Return what the process holds in memory, in bytes; None where the system does not say."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)
