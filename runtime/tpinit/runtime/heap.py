"""Memory that a step frees is kept for the next one: on a CPU as torch does on a GPU.

glibc gives memory back to the system whenever much of it is free, and gets it again page by page, zeroed. A step of
training frees all that it took, so that it would pay for that each time.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST_KEPT = 32 << 20  # bytes: glibc takes no larger bound, what is larger comes from the system each time
_NEVER = (1 << 31) - 1


def keep_freed() -> bool:
    """Let this process keep what it frees; return whether it does.

    Nothing is changed where the environment says how malloc shall work, or where the C library has no such choice.
    """
    if not sys.platform.startswith("linux"):
        return False
    told = [name for name in os.environ if name.startswith("MALLOC_")]
    if told or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
