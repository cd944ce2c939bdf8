"""Ranks that fail or differ at any step of a start: all come to the same exchanges and collectives, and end alike."""

from __future__ import annotations

import os
from itertools import chain, combinations
from typing import Any

import pytest

pytestmark = pytest.mark.distributed

ORDER = [
    "devices",
    "prepare",
    "groups",
    "probe: reason",
    "probe: unsharded model",
    "probe: sharded model",
    "shard",
    "engine",
]
# What a rank raises itself where all ranks failed alike.
OWN = {"SystemExit", "KeyboardInterrupt", "SilentError", "RuntimeError", "MemoryError", "ConfigError", "TpinitError"}


def check(size: int, runs: list[dict[str, Any]]) -> None:
    """Compare what the ranks did in one start."""
    first = runs[0]
    for run in runs:
        assert run["steps"] == first["steps"], runs
        assert run["sent"] == first["sent"], runs
        assert (run["type"] == "") == (first["type"] == ""), runs
        assert run["seconds"] < 10, runs
    if first["type"] in ("AgreementError", "PlanError") and first["type"] == runs[-1]["type"]:
        assert len({run["text"] for run in runs}) == 1, runs


@pytest.mark.parametrize("size", [2, 4])
def test_every_failure_and_difference_at_every_step(worlds: Any, size: int) -> None:
    ranks = range(size)
    subsets = list(chain.from_iterable(combinations(ranks, count) for count in range(1, size + 1)))
    failing = subsets if size == 2 else [(3,), (0, 2)]
    results = worlds[size].run("scenarios.start_protocol:every_case", timeout=200, failing=failing)
    for runs in zip(*results, strict=True):
        check(size, list(runs))
        one = runs[0]
        if one["case"] == "none":
            assert one["type"] == ""
            assert list(dict.fromkeys(one["steps"])) == ORDER
        elif len(one["ranks"]) < size:
            assert one["steps"][-1] == one["last"], one
            assert {run["type"] for run in runs} <= {"AgreementError", "PlanError"}, runs
        else:  # all ranks did the same: legal for all, or refused by each
            assert {run["type"] for run in runs} <= {"", "PlanError", *OWN, "UnsupportedError", "GroupError"}, runs


# TPINIT_TEST_STARTS=300 draws more.
@pytest.mark.parametrize("size", [2, 4])
def test_drawn_combinations_end_on_all_ranks(worlds: Any, size: int) -> None:
    count = int(os.environ.get("TPINIT_TEST_STARTS", "30")) // 2
    results = worlds[size].run("scenarios.start_protocol:drawn", timeout=60 + 5 * count, seed=size, count=count)
    for runs in zip(*results, strict=True):
        check(size, list(runs))
