"""What a call raised, and whether the ranks still answer each other after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from tpinit.reference.errors import TpinitError


def error_of(call: Callable[[], Any]) -> dict[str, Any]:
    """Return the class, text, violation codes and fields of the error that `call` raises; class None without one."""
    try:
        call()
    except Exception as error:
        codes = [violation.code.value for violation in error.decision.violations] if hasattr(error, "decision") else []
        fields = list(getattr(error, "fields", ()))
        return {"type": type(error).__name__, "text": str(error), "codes": codes, "fields": fields}
    return {"type": None, "text": "", "codes": [], "fields": []}


def refusal_of(call: Callable[[], Any]) -> str:
    """Return the class and text of the TpinitError that `call` raises; empty without one. Any other error passes."""
    try:
        call()
    except TpinitError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def in_step(rank: int) -> bool:
    """Return whether all ranks take part in one more all-reduce: none waits in another collective."""
    total = torch.tensor([rank])
    dist.all_reduce(total)
    return int(total) == sum(range(dist.get_world_size()))
