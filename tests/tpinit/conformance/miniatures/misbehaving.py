"""Miniatures that need a process of their own: they crash, hang, answer garbage or keep state."""

from __future__ import annotations

import os
import threading

from tpinit.conformance.adapters.reference import adapter as resolver
from tpinit.conformance.vectors import Json

__all__ = ["answers_garbage", "crashes", "hangs", "leaks_state"]

_calls: list[Json] = []


def leaks_state(case: Json) -> Json:
    """Keep the call of a model whose initialize failed, and use it for the next model without a call."""
    call = case["call"] or (_calls.pop() if _calls else None)
    answer = resolver({**case, "call": call})
    if answer["outcome"] == "error" and call is not None:
        _calls[:] = [{**call, "tp_group": None}]  # the group belongs to the failed model
    return answer


def crashes(case: Json) -> Json:
    """End the process for a case with a call and an mpu."""
    if case["call"] is not None and case["mpu"] is not None:
        os._exit(3)
    return resolver(case)


def hangs(case: Json) -> Json:
    """Wait forever for a case with a call and an mpu."""
    if case["call"] is not None and case["mpu"] is not None:
        threading.Event().wait()
    return resolver(case)


def answers_garbage(case: Json) -> Json:
    """Answer a malformed result for a case with a call and an mpu."""
    if case["call"] is not None and case["mpu"] is not None:
        return {"outcome": "fine", "row": 13}
    return resolver(case)
