"""Real DeepSpeed in real processes, unpatched, behind the kit's adapter interface.

`adapter` is what `tpinit conform --impl deepspeed` takes. DeepSpeed runs under an interpreter of its own, named by
the environment variable TPINIT_DEEPSPEED_PYTHON (`make deepspeed-env` makes one in .venv-deepspeed).
"""

from __future__ import annotations

import os

from tpinit.conformance.adapters.deepspeed.adapter import RankServerAdapter
from tpinit.conformance.adapters.deepspeed.host import PYTHON_VARIABLE
from tpinit.conformance.protocol import Broken

__all__ = ["CHOICES", "PYTHON_VARIABLE", "adapter", "python_of"]

# What DeepSpeed does on purpose where its own table says "error": it says so in its source.
CHOICES = ("row1-plain-data-parallel", "row5-creates-group")


def python_of() -> str:
    """Return the interpreter that has DeepSpeed. Raises Broken where the variable names none."""
    python = os.environ.get(PYTHON_VARIABLE, "")
    if not python or not os.access(python, os.X_OK):
        raise Broken(
            f"{PYTHON_VARIABLE} is {python!r}, and must be a Python with DeepSpeed: "
            f"make deepspeed-env && export {PYTHON_VARIABLE}=$PWD/.venv-deepspeed/bin/python"
        )
    return python


def adapter() -> RankServerAdapter:
    """Return an adapter for the DeepSpeed of that interpreter."""
    return RankServerAdapter("deepspeed", python_of, choices=CHOICES)
