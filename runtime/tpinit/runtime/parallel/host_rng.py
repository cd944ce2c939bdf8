"""The RNG states of Python and numpy, from which some models draw which layers to skip or which tokens to mask."""

from __future__ import annotations

import ctypes
import random
import sys
from typing import Any

__all__ = ["hash_host_rng_states", "host_rng_states", "numpy_random", "seed_host_rngs", "set_host_rng_states"]

_MT19937_BYTES = 4 * 624 + 4  # its words of 32 bits, and the position of the next one


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


def seed_host_rngs(seed: int) -> None:
    """Seed the generators of Python and of numpy."""
    random.seed(seed)
    numpy = numpy_random()
    if numpy is not None:
        numpy.seed(seed % (1 << 32))  # numpy's seeds have 32 bits


def hash_host_rng_states(hashed: Any) -> None:
    """Add the states of Python and of numpy to a hash of hashlib: equal states on two ranks add the same bytes."""
    version, words, following_gauss = random.getstate()
    # The words are 32-bit integers; one `hash` of the tuple is the same in every process and far faster than a text.
    hashed.update(f"{version} {hash(words)} {following_gauss!r}".encode())
    numpy = numpy_random()
    if numpy is not None:
        hashed.update(_numpy_state_bytes(numpy))


def _numpy_state_bytes(numpy: Any) -> bytes:
    """Return bytes that change with every number that is drawn from numpy's generator.

    `get_state` takes as long as all the rest of a check, so the words are read in place where that is possible.
    """
    generator: Any = numpy.get_bit_generator() if hasattr(numpy, "get_bit_generator") else None
    if type(generator).__name__ == "MT19937":
        return ctypes.string_at(generator.ctypes.state_address, _MT19937_BYTES)
    return repr(numpy.get_state(legacy=False)).encode()
