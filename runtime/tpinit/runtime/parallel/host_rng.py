"""The RNG states of Python and numpy, from which some models draw which layers to skip or which tokens to mask."""

from __future__ import annotations

import random
import sys
from typing import Any

__all__ = ["host_rng_states", "numpy_random", "set_host_rng_states"]


def numpy_random() -> Any:
    """Return the module `numpy.random` if numpy has been imported, else None: then nothing can draw from it."""
    return getattr(sys.modules.get("numpy"), "random", None)


def host_rng_states() -> tuple[Any, Any]:
    """Return the RNG states of Python and of numpy; None for numpy if it has not been imported."""
    numpy = numpy_random()
    return random.getstate(), numpy.get_state() if numpy is not None else None


def set_host_rng_states(python_state: Any, numpy_state: Any) -> None:
    """Set RNG states that `host_rng_states` returned on this or another rank, whose numpy may not be imported."""
    random.setstate(python_state)
    numpy = numpy_random()
    if numpy_state is not None and numpy is not None:
        numpy.set_state(numpy_state)
