"""The random numbers that Python and numpy draw: some models decide with them what layers to skip or tokens to mask."""

from __future__ import annotations

import random
import sys
from typing import Any

__all__ = ["numpy_random", "set_host_rng_states", "host_rng_states"]


def numpy_random() -> Any:
    """Return numpy's random numbers, if anything has imported numpy: without it nobody draws them. None otherwise."""
    return getattr(sys.modules.get("numpy"), "random", None)


def host_rng_states() -> tuple[Any, Any]:
    """Return the states of Python's and of numpy's random numbers, of numpy's None where it is not there."""
    numpy = numpy_random()
    return random.getstate(), numpy.get_state() if numpy is not None else None


def set_host_rng_states(mine: Any, theirs: Any) -> None:
    """Go on from states that `host_rng_states` returned, here or on another rank, where numpy may not be there."""
    random.setstate(mine)
    numpy = numpy_random()
    if theirs is not None and numpy is not None:
        numpy.set_state(theirs)
