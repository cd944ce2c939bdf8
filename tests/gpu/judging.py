"""What the results of the scenarios must be, on a GPU and on the CPU alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_TOLERANCE = {"fp32": 2e-4, "bf16": 5e-2, "fp16": 3e-2}  # relative: other orders of summation over five updates


def judge(scenario: str, results: list[dict[str, Any]], kind: str, exclusive: bool = False) -> None:
    """Check the results of all ranks. `exclusive`: each rank has a GPU of its own."""
    for result in results:
        _JUDGES[SCENARIOS[scenario][0]](result, results, kind, exclusive, scenario)


def _chosen(one: dict[str, Any], results: list[dict[str, Any]], kind: str, exclusive: bool, _: str) -> None:
    assert one["device"] == one["current"]
    assert one["device"].split(":")[0] == kind
    assert one["parameters"] == [one["device"]]
    if exclusive:
        assert len({result["device"] for result in results}) == len(results)
    if kind != "cpu":
        assert "input_ids on cpu" in one["batch on the CPU"]


def _exact(one: dict[str, Any], _: list[dict[str, Any]], __: str, ___: bool, scenario: str) -> None:
    dtype = scenario.split("-")[1]
    assert one["loss"] < _TOLERANCE[dtype], one
    assert one["weights"] < 5 * _TOLERANCE[dtype], one
    assert one["skipped"] == 0


def _dropout(one: dict[str, Any], results: list[dict[str, Any]], *_: Any) -> None:
    assert one["losses"] == results[0]["losses"]
    assert one["replicated"] == results[0]["replicated"]
    assert one["kept"]


def _rng_states(one: dict[str, Any], *_: Any) -> None:
    assert one["again"] == one["first"]
    assert one["following"] != one["first"]  # the negative control: dropout drops something
    assert one["recomputed"] < 1e-4


def _generated(one: dict[str, Any], results: list[dict[str, Any]], *_: Any) -> None:
    assert one["greedy"] == one["whole"]
    assert one["sampled"] == results[0]["sampled"]


def _saved(one: dict[str, Any], *_: Any) -> None:
    assert one["parameters"] > 10
    assert one["difference"] == 0


def _memory(one: dict[str, Any], results: list[dict[str, Any]], kind: str, *_: Any) -> None:
    if kind != "cpu" and len(results) > 1:
        assert one["sharded"] < 0.8 * one["whole"], one


def _host_waits(one: dict[str, Any], _: list[dict[str, Any]], kind: str, exclusive: bool, *__: Any) -> None:
    if kind != "cpu" and exclusive:  # gloo itself waits, for its copies
        assert one["backward"] == 0, one
        assert one["step"] <= 1, one


def _ended(one: dict[str, Any], *_: Any) -> None:
    assert "destroy() has freed" in one["refused"]
    assert one["loss"] > 0


SCENARIOS: dict[str, tuple[str, dict[str, Any]]] = {
    "chosen": ("chosen", {}),
    "exact-fp32": ("exact", {"dtype": "fp32"}),
    "exact-bf16": ("exact", {"dtype": "bf16"}),
    "exact-fp16": ("exact", {"dtype": "fp16"}),
    "dropout": ("dropout", {}),
    "rng_states": ("rng_states", {}),
    "generated": ("generated", {}),
    "saved": ("saved", {}),
    "memory": ("memory", {}),
    "host_waits": ("host_waits", {}),
    "ended": ("ended", {}),
}
"""The scenarios by name: the function in `gpu.scenarios`, and its arguments."""

_JUDGES: dict[str, Callable[..., None]] = {
    "chosen": _chosen,
    "exact": _exact,
    "dropout": _dropout,
    "rng_states": _rng_states,
    "generated": _generated,
    "saved": _saved,
    "memory": _memory,
    "host_waits": _host_waits,
    "ended": _ended,
}
