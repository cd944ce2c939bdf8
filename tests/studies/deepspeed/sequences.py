"""Programs of several calls in one process: repeats, two models, a failed call before a good one, a shared config.

The contract requires that calls for one model agree (D9), that calls for different models are independent (D9), that a
config is never changed (D10), and that an `initialize` depends on its own inputs only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tpinit.conformance.adapters.deepspeed.jobs import BASE, Partition, blocks, observations, orthogonal
from tpinit.conformance.adapters.deepspeed.observation import Observation, StartStatus, observe
from tpinit.spec.vocabulary import Outcome

from studies.deepspeed.judge import Aspect, Departure, DepartureKind, Expected, judge

__all__ = ["CallSequence", "job_of_sequence", "judge_sequence", "sequences"]

_WATCH = ("numbers", "sharding", "averaging", "check")


@dataclass(frozen=True, slots=True)
class CallSequence:
    """One program. `engines` has the expected result for each model; `errors` the steps that must raise, with the
    legal codes (empty: any error); `fine` the steps that must not raise.
    """

    id: str
    title: str
    world: int
    steps: tuple[Mapping[str, Any], ...]
    configs: Mapping[str, Any]
    groups: Mapping[str, Partition] = field(default_factory=dict)
    engines: Mapping[str, Expected] = field(default_factory=dict)
    errors: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    fine: tuple[int, ...] = ()


def job_of_sequence(sequence: CallSequence, timeout: float) -> dict[str, Any]:
    """Return the job of a sequence; it continues after a step that raises on all ranks."""
    return {
        "id": sequence.id,
        "world": sequence.world,
        "groups": dict(sequence.groups),
        "configs": dict(sequence.configs),
        "steps": list(sequence.steps),
        "timeout": timeout,
        "goes_on": True,
    }


def judge_sequence(sequence: CallSequence, report: Mapping[str, Any]) -> list[Departure]:
    """Return the departures of a whole program."""
    found = []
    for number, codes in sequence.errors.items():
        found += _error(report, number, codes)
    for number in sequence.fine:
        seen = _step(report, number)
        if seen.errors:
            found.append(
                Departure(DepartureKind.ERROR, Aspect.OUTCOME, f"step {number + 1} raises nothing", seen.message)
            )
    for model, expected in sequence.engines.items():
        seen = observe(report, model)
        if seen.ended is StartStatus.ERROR and seen.training.off_by is None and not seen.errors:
            found.append(
                Departure(DepartureKind.CRASH, Aspect.OUTCOME, f"model {model}: an engine", "it was never reached")
            )
            continue
        found += [
            Departure(departure.kind, departure.aspect, f"model {model}: {departure.expected}", departure.observed)
            for departure in judge(expected, seen)
        ]
    return found


def _error(report: Mapping[str, Any], number: int, codes: tuple[str, ...]) -> list[Departure]:
    notes = [rank["steps"][number] if number < len(rank["steps"]) else {} for rank in report["ranks"]]
    should = f"step {number + 1} raises {' or '.join(codes)}"
    if all(note.get("ok") for note in notes):
        return [Departure(DepartureKind.ERROR, Aspect.OUTCOME, should, "no error")]
    seen = _step(report, number)
    if all(note.get("ok") is False for note in notes) and (not codes or set(seen.codes) & set(codes)):
        return []
    return [
        Departure(
            DepartureKind.ERROR if seen.codes else DepartureKind.CRASH,
            Aspect.OUTCOME,
            should,
            seen.message or "nothing",
        )
    ]


def _step(report: Mapping[str, Any], number: int) -> Observation:
    """Return the observation of one step of a program on all ranks."""
    notes = [rank["steps"][number] if number < len(rank["steps"]) else {} for rank in report["ranks"]]
    return observe({**report, "ranks": [{"steps": [note]} for note in notes]}, notes[0].get("model", "m"))


def _sharded(world: int, size: int) -> Expected:
    tp = blocks(world, size)
    return Expected(Outcome.INIT_FROM_CONFIG, tp_size=size, tp_groups=tp, dp_groups=orthogonal(tp))


def _init(model: str, config: str, **more: Any) -> dict[str, Any]:
    return {"op": "initialize", "model": model, "config": config, **more}


def _call(model: str, size: int, group: str | None = None) -> dict[str, Any]:
    tp_group = None if group is None else {"$group": group}
    return {"op": "call", "model": model, "tp_size": size, "dtype": {"$dtype": "fp32"}, "tp_group": tp_group}


def _section(size: int) -> dict[str, Any]:
    return {**BASE, "tensor_parallel": {"autotp_size": size}}


def _watch(model: str, size: int, what: tuple[str, ...] = _WATCH) -> list[dict[str, Any]]:
    return observations(blocks(4, size), what, model)


def _repeats() -> Iterator[CallSequence]:
    config = {"c": _section(2)}
    yield CallSequence(
        "call-twice-alike",
        "tp_model_init twice for one model, with the same arguments",
        4,
        (_call("a", 2), _call("a", 2), _init("a", "c"), *_watch("a", 2)),
        config,
        engines={"a": _sharded(4, 2)},
    )
    for name, second in (("size", _call("a", 4)), ("dtype", {**_call("a", 2), "dtype": {"$dtype": "bf16"}})):
        title = f"tp_model_init twice for one model, with another {name}"
        yield CallSequence(
            f"call-twice-{name}", title, 4, (_call("a", 2), second), {}, errors={1: ("CONFLICTING_CALLS",)}
        )
    yield CallSequence(
        "call-twice-group",
        "tp_model_init twice for one model, with another group of the same size",
        4,
        (_call("a", 2, "g"), _call("a", 2, "h")),
        {},
        {"g": [[0, 1], [2, 3]], "h": [[0, 2], [1, 3]]},
        errors={1: ("CONFLICTING_CALLS",)},
    )


def _two_models() -> Iterator[CallSequence]:
    yield CallSequence(
        "two-models-call",
        "tp_model_init for two models, of different sizes",
        4,
        (_call("a", 2), _call("b", 4), _init("a", "c"), *_watch("a", 2)),
        {"c": _section(2)},
        engines={"a": _sharded(4, 2)},
        fine=(0, 1),
    )
    for first, second in ((2, 4), (4, 2)):
        yield CallSequence(
            f"two-models-{first}-{second}",
            f"two models in one process, by config: autotp_size {first}, then {second}",
            4,
            (_init("a", "c"), _init("b", "d"), *_watch("b", second)),
            {"c": _section(first), "d": _section(second)},
            engines={"b": _sharded(4, second)},
        )
    yield CallSequence(
        "two-models-4-2-warm",
        "two models in one process: autotp_size 4, then 2; the first batch is the same on every rank",
        4,
        (_init("a", "c"), _init("b", "d"), *_watch("b", 2, ("sharding", "numbers", "averaging"))),
        {"c": _section(4), "d": _section(2)},
        engines={"b": _sharded(4, 2)},
    )
    yield CallSequence(
        "sharded-then-whole",
        "two models in one process: autotp_size 2, then 1",
        4,
        (_init("a", "c"), _init("b", "d"), *_watch("b", 1)),
        {"c": _section(2), "d": _section(1)},
        engines={"b": _sharded(4, 1)},
    )


def _second_models() -> Iterator[CallSequence]:
    """A second model that must not inherit a call, a config or a group of the first one."""
    row1 = ("NO_TP_INTENT",)
    yield CallSequence(
        "record-outlives",
        "tp_model_init and initialize for one model, then initialize of another that never had a call",
        4,
        (_call("a", 2), _init("a", "c"), _init("b", "d")),
        {"c": _section(2), "d": dict(BASE)},
        engines={"b": Expected(Outcome.ERROR, row1)},
    )
    yield CallSequence(
        "config-reused",
        "one config object without a section: first with a call and an mpu, then for a model without a call",
        4,
        (_call("a", 2), _init("a", "c", mpu={"tp": "g", "dp": "d"}), _init("b", "c")),
        {"c": dict(BASE)},
        {"g": blocks(4, 2), "d": orthogonal(blocks(4, 2))},
        engines={"b": Expected(Outcome.ERROR, row1)},
    )
    yield CallSequence(
        "second-mpu",
        "a sharded model, then a second model with an mpu (row 2); then the first one trains",
        4,
        (_init("a", "c"), _init("b", "d", mpu={"tp": "one", "dp": "all"}), *_watch("a", 2)),
        {"c": _section(2), "d": dict(BASE)},
        {"one": blocks(4, 1), "all": blocks(4, 4)},
        engines={"a": _sharded(4, 2)},
    )


def _after_failure() -> Iterator[CallSequence]:
    bad_batch = {**_section(4), "train_batch_size": 7, "train_micro_batch_size_per_gpu": 2}
    yield CallSequence(
        "failed-then-good",
        "initialize that fails on its batch sizes, then the corrected config",
        4,
        (_init("a", "bad"), _init("a", "good"), *_watch("a", 2)),
        {"bad": bad_batch, "good": _section(2)},
        engines={"a": _sharded(4, 2)},
        errors={0: ()},
    )
    yield CallSequence(
        "failed-call-then-good",
        "a call and an initialize that fails on its batch sizes; then another model of another size",
        4,
        (_call("a", 4), _init("a", "bad"), _init("b", "good"), *_watch("b", 2)),
        {"bad": {**bad_batch, "tensor_parallel": {}}, "good": _section(2)},
        engines={"b": _sharded(4, 2)},
    )


def sequences() -> list[CallSequence]:
    """Return all programs."""
    return [program for part in (_repeats(), _two_models(), _second_models(), _after_failure()) for program in part]
