"""The torch generators of the CPU and of one accelerator, which alone a run seeds and restores.

`torch.manual_seed` would reseed every visible GPU, and other programs' or other models' draws with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["device_rng_state", "preserved_torch_rng", "seed_torch", "set_device_rng_state"]


def _module(device: torch.device) -> Any:
    """Return torch's module of the device's kind; None for the CPU and the meta device."""
    return None if device.type in ("cpu", "meta") else torch.get_device_module(device.type)


def device_rng_state(device: torch.device) -> torch.Tensor | None:
    """Return the RNG state of an accelerator, a uint8 tensor in host memory; None for the CPU."""
    module = _module(device)
    return None if module is None else module.get_rng_state(device)


def set_device_rng_state(state: torch.Tensor | None, device: torch.device) -> None:
    """Set the state that `device_rng_state` returned for this device; nothing for the CPU."""
    if state is not None:
        _module(device).set_rng_state(state, device)


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of one device."""
    torch.default_generator.manual_seed(seed)
    module = _module(device)
    if module is not None:
        index = device.index if device.index is not None else module.current_device()
        module.default_generators[index].manual_seed(seed)


@contextmanager
def preserved_torch_rng(*devices: torch.device) -> Iterator[None]:
    """Restore the RNG states of torch on the CPU and on these devices when the context ends."""
    cpu, others = torch.get_rng_state(), [(device_rng_state(device), device) for device in devices]
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        for state, device in others:
            set_device_rng_state(state, device)
