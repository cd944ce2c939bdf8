"""Real, unpatched DeepSpeed in real processes: the adapter of `tpinit conform --impl deepspeed`.

DeepSpeed runs under another Python interpreter, which the environment variable TPINIT_DEEPSPEED_PYTHON names
(`make deepspeed-env` makes one in .venv-deepspeed).
"""

from __future__ import annotations

import os

from tpinit.conformance.adapters.deepspeed.adapter import RankServerAdapter
from tpinit.conformance.adapters.deepspeed.host import PYTHON_VARIABLE
from tpinit.conformance.protocol import Broken

__all__ = ["CHOICES", "PYTHON_VARIABLE", "adapter", "python_of"]

# The deliberate departures of DeepSpeed, documented in its source, where its own table says "error".
CHOICES = ("row1-plain-data-parallel", "row5-creates-group")


def python_of() -> str:
    """Return the path of the interpreter that has DeepSpeed. Raises Broken if the variable names no executable."""
    python = os.environ.get(PYTHON_VARIABLE, "")
    if not python or not os.access(python, os.X_OK):
        raise Broken(
            f"{PYTHON_VARIABLE} is {python!r}; it must name a Python interpreter with DeepSpeed: "
            f"make deepspeed-env && export {PYTHON_VARIABLE}=$PWD/.venv-deepspeed/bin/python"
        )
    return python


def adapter() -> RankServerAdapter:
    """Return an adapter for the DeepSpeed of the interpreter in TPINIT_DEEPSPEED_PYTHON."""
    return RankServerAdapter("deepspeed", python_of, choices=CHOICES)
