"""Miniatures that need a process of their own: they crash, hang, talk nonsense or remember."""

from __future__ import annotations

import os
import threading

from tpinit.conformance.adapters.reference import adapter as resolver
from tpinit.conformance.vectors import Json

__all__ = ["answers_garbage", "crashes", "hangs", "leaks_state"]

_calls: list[Json] = []


def leaks_state(case: Json) -> Json:
    """Keep the record of a call whose initialize failed, and hand it to the next model that had no call."""
    call = case["call"] or (_calls.pop() if _calls else None)
    answer = resolver({**case, "call": call})
    if answer["outcome"] == "error" and call is not None:
        _calls[:] = [{**call, "tp_group": None}]  # the group was that model's own
    return answer


def crashes(case: Json) -> Json:
    """End the process where a call meets an mpu."""
    if case["call"] is not None and case["mpu"] is not None:
        os._exit(3)
    return resolver(case)


def hangs(case: Json) -> Json:
    """Wait for ever where a call meets an mpu."""
    if case["call"] is not None and case["mpu"] is not None:
        threading.Event().wait()
    return resolver(case)


def answers_garbage(case: Json) -> Json:
    """Answer in another shape where a call meets an mpu."""
    if case["call"] is not None and case["mpu"] is not None:
        return {"outcome": "fine", "row": 13}
    return resolver(case)
