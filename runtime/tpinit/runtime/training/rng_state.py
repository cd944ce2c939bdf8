"""The RNG states of a rank as bytes: torch on the CPU and on its CUDA device, Python and numpy."""

from __future__ import annotations

import json
import logging
from typing import Any

import torch
from tpinit.runtime.checkpoint.values import decode, encode
from tpinit.runtime.errors import CheckpointError
from tpinit.runtime.groups.digest import raw_bytes
from tpinit.runtime.parallel.host_rng import host_rng_states, set_host_rng_states

__all__ = ["read_rng_bytes", "rng_bytes", "set_rng"]

_log = logging.getLogger("tpinit")


def rng_bytes(device: torch.device) -> torch.Tensor:
    """Return all RNG states of this rank, JSON in a uint8 tensor. `device` is the model's."""
    python, numpy = host_rng_states()
    states = {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": python,
        "numpy": numpy,
    }
    return torch.frombuffer(bytearray(json.dumps(encode(states, "RNG states")).encode()), dtype=torch.uint8)


def read_rng_bytes(data: torch.Tensor) -> dict[str, Any]:
    """Return the states that `rng_bytes` wrote. Raises CheckpointError."""
    try:
        states: dict[str, Any] = decode(json.loads(raw_bytes(data)))
        if set(states) != {"cpu", "cuda", "python", "numpy"} or not isinstance(states["cpu"], torch.Tensor):
            raise ValueError("they have other fields")
        if states["numpy"] is not None:
            name, words, *rest = states["numpy"]
            states["numpy"] = (name, words.numpy(), *rest)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the RNG states of the checkpoint can't be read: {error}") from error
    return states


def set_rng(states: dict[str, Any], device: torch.device) -> None:
    """Set the RNG states of this rank. Raises CheckpointError for states that a generator does not take."""
    try:
        torch.set_rng_state(states["cpu"])
        if device.type == "cuda" and states["cuda"] is not None:
            torch.cuda.set_rng_state(states["cuda"], device)
        elif device.type == "cuda":
            _log.warning("the checkpoint was saved on CPUs: the CUDA generator keeps its state")
        set_host_rng_states(states["python"], states["numpy"])
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the RNG states of the checkpoint can't be set: {error}") from error
