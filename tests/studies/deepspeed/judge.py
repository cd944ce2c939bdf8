"""Compare an observation with what the contract requires, and classify each departure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tpinit.conformance.adapters.deepspeed.jobs import Partition, blocks, orthogonal
from tpinit.conformance.adapters.deepspeed.observation import Observation, StartStatus
from tpinit.spec.vocabulary import Outcome

__all__ = ["Aspect", "Departure", "Expected", "DepartureKind", "judge"]

_TORCH = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class DepartureKind(str, Enum):
    """The kinds of departures, the worst first."""

    WRONG_TRAINING = "silent wrong training"
    HANG = "hang"
    CRASH = "crash with an unrelated error"
    IGNORED = "ignored setting"
    ERROR = "wrong or missing error"
    LEAK = "state leak"
    DOCUMENTATION = "documentation only"


class Aspect(str, Enum):
    """The compared property of an observation."""

    OUTCOME = "outcome"
    TP_SIZE = "tp_size"
    DTYPE = "dtype"
    SHARDING = "sharding group"
    AVERAGING = "averaging group"
    CHECK = "input-check group"
    NUMBERS = "numbers"
    CONFIG = "the caller's config"
    BATCH = "batch arithmetic"


@dataclass(frozen=True, slots=True)
class Departure:
    """One departure: its kind, the compared property, and the expected and observed values as text."""

    kind: DepartureKind
    aspect: Aspect
    expected: str
    observed: str


@dataclass(frozen=True, slots=True)
class Expected:
    """What the contract requires: an error (with `codes`, or `malformed` for an unreadable input), or an engine.

    `mentions` are the keys that an error about a malformed input may name. `tp_groups` are the groups that must shard,
    None without tensor parallelism; `dp_groups` the groups that must average gradients; `samples` the number of samples
    per update, None if the config does not give it.
    """

    outcome: Outcome
    codes: tuple[str, ...] = ()
    malformed: bool = False
    mentions: tuple[str, ...] = ()
    tp_size: int | None = None
    dtype: str | None = None
    tp_groups: Partition | None = None
    dp_groups: Partition | None = None
    samples: int | None = None

    @staticmethod
    def of(answer: Mapping[str, Any], world: int, partitions: Mapping[str, Partition], mpu: str | None) -> Expected:
        """Convert the expected answer of a vector, given its world size, its handles' ranks and its mpu's handle."""
        outcome = Outcome(answer["outcome"])
        if outcome is Outcome.ERROR:
            return Expected(outcome, tuple(answer["violations"]))
        size, handle = answer["tp_size"]["value"], answer["tp_group"]["value"]
        tp = None if size is None else partitions[handle] if handle is not None else blocks(world, size)
        dp = orthogonal(partitions[mpu]) if tp is None and mpu is not None else None if tp is None else orthogonal(tp)
        return Expected(outcome, tp_size=size, dtype=answer["dtype"]["value"], tp_groups=tp, dp_groups=dp)


def judge(expected: Expected, seen: Observation) -> list[Departure]:
    """Return every departure of the observation from what is expected; empty if they agree."""
    found = list(_error(expected, seen) if expected.outcome is Outcome.ERROR else _engine(expected, seen))
    if seen.changed:
        paths = ", ".join(seen.changed)
        found.append(Departure(DepartureKind.LEAK, Aspect.CONFIG, "unchanged (D10)", f"changed at {paths}"))
    return found


def _stopped(seen: Observation, should: str) -> list[Departure]:
    """Return the departure for ranks that hang, die or disagree."""
    if seen.ended is StartStatus.HANG:
        frames = next(iter(seen.where.values()), [])
        at = f", in {frames[0]}" if frames else ""
        return [
            Departure(DepartureKind.HANG, Aspect.OUTCOME, should, f"ranks {list(seen.hung)} hang{at}; {seen.message}")
        ]
    if seen.ended is StartStatus.DIED:
        return [Departure(DepartureKind.CRASH, Aspect.OUTCOME, should, "a rank's process ends")]
    others = [rank for rank in range(len(seen.steps)) if rank not in seen.errors]
    text = f"{seen.message}, while ranks {others} return an engine"
    return [Departure(DepartureKind.CRASH, Aspect.OUTCOME, should, text)]


def _error(expected: Expected, seen: Observation) -> Sequence[Departure]:
    should = f"error {' or '.join(expected.codes) or 'that names ' + ' or '.join(expected.mentions)}"
    if seen.ended is StartStatus.ENGINE:
        did = "plain data parallelism" if max(seen.degrees) == 1 else f"tp_size {max(seen.degrees)}"
        text = f"no error: {did} in {'/'.join(seen.dtypes)}"
        if seen.training.raised is not None:
            text += f"; training then raises {seen.training.raised['type']}"
        return [Departure(DepartureKind.ERROR, Aspect.OUTCOME, should, text)]
    if seen.ended is not StartStatus.ERROR:
        return _stopped(seen, should)
    if set(seen.codes) & set(expected.codes):
        return []
    # An error about a malformed input is accepted if its message names the wrong key.
    if expected.malformed and any(word in seen.message for word in expected.mentions):
        return []
    kind = DepartureKind.ERROR if seen.codes else DepartureKind.CRASH
    return [Departure(kind, Aspect.OUTCOME, should, seen.message)]


def _engine(expected: Expected, seen: Observation) -> Sequence[Departure]:
    should = f"{expected.outcome.value}, tp_size {expected.tp_size}, {expected.dtype or 'the dtype it has'}"
    if seen.ended is StartStatus.ERROR:
        # A validation error that names the field is not a crash, although it refuses a legal value.
        about = bool(seen.codes) or "ValidationError" in seen.message
        kind = DepartureKind.ERROR if about else DepartureKind.CRASH
        return [Departure(kind, Aspect.OUTCOME, should, seen.message)]
    if seen.ended is not StartStatus.ENGINE:
        return _stopped(seen, should)
    return [*_settings(expected, seen), *_groups(expected, seen), *_numbers(seen)]


def _settings(expected: Expected, seen: Observation) -> list[Departure]:
    found = []
    if expected.tp_size is not None and set(seen.degrees) != {expected.tp_size}:
        found.append(
            Departure(
                DepartureKind.IGNORED,
                Aspect.TP_SIZE,
                f"{expected.tp_size}",
                f"parameters sharded {max(seen.degrees)}-way",
            )
        )
    dtype = _TORCH.get(expected.dtype or "fp32", "float32")
    if list(seen.dtypes) != [dtype]:
        found.append(Departure(DepartureKind.IGNORED, Aspect.DTYPE, dtype, "parameters are " + ", ".join(seen.dtypes)))
    if expected.samples is not None:
        claim = seen.claims[0]
        used = claim["micro_batch_size"] * claim["accumulation_steps"] * len((expected.dp_groups or [[]])[0])
        if used != expected.samples:
            micro, steps = claim["micro_batch_size"], claim["accumulation_steps"]
            text = f"{used} samples: micro batches of {micro}, accumulated over {steps}, in each data-parallel group"
            found.append(
                Departure(DepartureKind.WRONG_TRAINING, Aspect.BATCH, f"{expected.samples} samples an update", text)
            )
    return found


def _groups(expected: Expected, seen: Observation) -> list[Departure]:
    """Compare the groups, but only if the TP size is right: another size implies other groups."""
    if expected.tp_size is not None and set(seen.degrees) != {expected.tp_size}:
        return []
    harm = DepartureKind.WRONG_TRAINING if seen.training.wrong else DepartureKind.IGNORED
    pairs = (
        (Aspect.SHARDING, expected.tp_groups, seen.sharding),
        (Aspect.AVERAGING, expected.dp_groups, seen.averaging),
        (Aspect.CHECK, expected.tp_groups if (expected.tp_size or 1) > 1 else None, seen.checking),
    )
    return [
        Departure(harm, aspect, _shown(should), _shown(did))
        for aspect, should, did in pairs
        if should is not None and did is not None and sorted(should) != sorted(did)
    ]


def _numbers(seen: Observation) -> list[Departure]:
    training = seen.training
    should = "the updates of the unsharded model"
    if training.hung:
        return [
            Departure(
                DepartureKind.HANG, Aspect.NUMBERS, should, f"ranks {list(training.hung)} hang in the first updates"
            )
        ]
    if training.raised is not None:
        text = f"{training.raised['type']}: {training.raised['message'][:160]}"
        kind = DepartureKind.ERROR if "Data inconsistency" in text else DepartureKind.CRASH
        return [Departure(kind, Aspect.NUMBERS, f"{should}, on the data that its groups call for", text)]
    if training.wrong:
        text = f"weights off by {training.off_by:.3g} after {len(training.updates)} updates"
        return [Departure(DepartureKind.WRONG_TRAINING, Aspect.NUMBERS, should, text)]
    return []


def _shown(groups: Partition) -> str:
    return " ".join(str(group) for group in groups)
