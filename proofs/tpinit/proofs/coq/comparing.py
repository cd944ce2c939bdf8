"""What Coq computes, compared with the shipped Python: `resolve`, the topology and the shards, text against text.

The program is extracted from the definitions that the theorems are about (`proofs/coq/Extract.v`, `main.ml`). Both
sides write each answer as one line of text, so that a field that is left out on one side is a difference.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeVar

from tpinit.proofs.coq.building import SECONDS
from tpinit.reference.resolver import resolve
from tpinit.runtime import shards
from tpinit.runtime.groups import topology
from tpinit.spec.vocabulary import (
    AnyGiven,
    Decision,
    DType,
    Effective,
    Group,
    Inputs,
    Source,
    Violation,
)

__all__ = [
    "CoqDifference",
    "arithmetic_questions",
    "ask",
    "compare",
    "compare_arithmetic",
    "question_of",
    "shown_decision",
]

T = TypeVar("T")
Resolver = Callable[[Inputs], Decision]
NOTHING = "-"


@dataclass(frozen=True, slots=True)
class CoqDifference:
    """A question to which the program and Python give different answers."""

    question: str
    by_coq: str
    by_python: str

    def __str__(self) -> str:
        """Say the question and both answers, one a line."""
        return f"{self.question}\n  Coq    {self.by_coq}\n  Python {self.by_python}"


def _place(member: Enum) -> str:
    return str(list(type(member)).index(member))


def _number(value: int) -> str:
    return format(value, "b")


def _group(group: Group) -> str:
    return f"{_number(group.identity)}:{_number(group.size)}"


def _value(value: object) -> str:
    if isinstance(value, Group):
        return f"g{_group(value)}"
    return f"d{_place(value)}" if isinstance(value, DType) else f"s{_number(value)}"  # type: ignore[arg-type] # a size


def question_of(inputs: Inputs) -> str:
    """Return one input as the 14 tokens that `main.ml` reads."""

    def number(value: int | None) -> str:
        return NOTHING if value is None else _number(value)

    def dtype(value: DType | None) -> str:
        return NOTHING if value is None else _place(value)

    def group(value: Group | None) -> str:
        return NOTHING if value is None else _group(value)

    call, section, mpu = inputs.call, inputs.section, inputs.mpu
    return " ".join(
        [
            _number(inputs.world_size),
            *([NOTHING] * 3 if call is None else [_number(call.tp_size), _place(call.dtype), group(call.tp_group)]),
            *(
                [NOTHING] * 6
                if section is None
                else [
                    "1",
                    number(section.autotp_size),
                    number(section.tp_size),
                    dtype(section.dtype),
                    group(section.tp_group),
                    str(section.carried.get("token", "0")),
                ]
            ),
            dtype(inputs.precision),
            *([NOTHING] * 2 if mpu is None else [_group(mpu.tp_group), group(mpu.dp_group)]),
            group(inputs.mesh),
        ]
    )


def shown_decision(inputs: Inputs, decision: Decision) -> str:
    """Return a decision as the line that `main.ml` prints for it.

    A group that is equal to the group of its source but is another object, and carried settings that are another
    mapping, are shown as such: the caller's own objects must arrive.
    """
    section = inputs.section
    if decision.carried == {}:
        carried = "0" if section is not None and not decision.section_disabled else NOTHING
    else:
        same = section is not None and decision.carried is section.carried
        carried = str(decision.carried.get("token")) if same else "another-mapping"
    return " ".join(
        [
            _number(decision.row),
            _place(decision.outcome),
            _effective(decision.tp_size, _number),
            _effective(decision.dtype, _place),
            _effective(decision.tp_group, lambda found: _given_group(inputs, decision.tp_group.source, found)),
            str(int(decision.section_disabled)),
            _number(decision.world_size),
            NOTHING if decision.dp_group is None else _group(decision.dp_group),
            carried,
            _place(decision.outcome),
            *(_violation(inputs, violation) for violation in decision.violations),
        ]
    )


def _effective(effective: Effective[T], show: Callable[[T], str]) -> str:
    if effective.source is None:
        return NOTHING if effective.value is None else "a-value-without-source"
    return f"{_place(effective.source)}={NOTHING if effective.value is None else show(effective.value)}"


def _violation(inputs: Inputs, violation: Violation) -> str:
    def given(one: AnyGiven) -> str:
        if isinstance(one.value, Group):
            return f"{_place(one.source)}=g{_given_group(inputs, one.source, one.value)}"
        return f"{_place(one.source)}={_value(one.value)}"

    return f"{_place(violation.code)}[{','.join(map(given, violation.given))}]"


def _given_group(inputs: Inputs, source: Source | None, found: Group) -> str:
    at_source = {
        Source.CALL_TP_GROUP: inputs.call and inputs.call.tp_group,
        Source.MPU_TP_GROUP: inputs.mpu and inputs.mpu.tp_group,
        Source.CONFIG_TP_GROUP: inputs.section and inputs.section.tp_group,
        Source.MESH_TP_GROUP: inputs.mesh,
    }
    return _group(found) if source is not None and at_source.get(source) is found else "another-object"


def ask(program: Path, questions: Sequence[str]) -> list[str]:
    """Ask the extracted program; return one answer to each question.

    Raises RuntimeError where the program fails or answers more or fewer questions.
    """
    done = subprocess.run(
        [str(program)], input="\n".join([*questions, ""]), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    answers = done.stdout.splitlines()
    if done.returncode != 0 or len(answers) != len(questions):
        raise RuntimeError(
            f"the extracted program answers {len(answers)} of {len(questions)} questions: {done.stderr.strip()[-400:]}"
        )
    return answers


def compare(program: Path, inputs: Iterable[Inputs], resolver: Resolver = resolve) -> list[CoqDifference]:
    """Compare the decision that Coq computes with the resolver's, for each input: all fields and all evidence.

    The line also holds the outcome that the prose gives, which must be the resolver's too. Returns the differences.
    """
    given = list(inputs)
    questions = [question_of(one) for one in given]
    return _differences(questions, ask(program, questions), [shown_decision(one, resolver(one)) for one in given])


def _differences(questions: Sequence[str], coq: Sequence[str], python: Sequence[str]) -> list[CoqDifference]:
    return [CoqDifference(*three) for three in zip(questions, coq, python, strict=True) if three[1] != three[2]]


# --- topology and shards -------------------------------------------------------------------------------

_LENGTHS = (0, 1, 5, 6, 7, 12)


def arithmetic_questions() -> tuple[list[tuple[int, int]], list[tuple[tuple[int, ...], int, int, int]]]:
    """Return the worlds and the fused dimensions on which both sides are compared: every one of a small domain."""
    worlds = [(world, size) for world in range(1, 33) for size in range(1, world + 1) if world % size == 0]
    blocks: list[tuple[int, ...]] = [(one,) for one in _LENGTHS] + [
        (a, b, c) for a in _LENGTHS for b in _LENGTHS for c in (0, 4)
    ]
    dimensions = [
        (lengths, unit, parts, index)
        for lengths in blocks
        for unit in (1, 2, 3)
        if all(length % unit == 0 for length in lengths)  # as the theorems in Coq ask
        for parts in (1, 2, 3, 5)
        for index in range(parts)
    ]
    return worlds, dimensions


def compare_arithmetic(program: Path) -> list[CoqDifference]:
    """Compare the created groups and the pieces of shards that Coq computes with the shipped Python's."""
    worlds, dimensions = arithmetic_questions()

    def groups(found: Iterable[Sequence[int]]) -> str:
        return ";".join(",".join(map(_number, ranks)) for ranks in found)

    questions = [f"topology {_number(world)} {_number(size)}" for world, size in worlds]
    expected = [f"{groups(topology.tp_groups(*one))} {groups(topology.dp_groups(*one))}" for one in worlds]
    for lengths, *rest in dimensions:
        questions.append(" ".join(["pieces", *map(_number, rest), *map(_number, lengths)]))
        found = shards.pieces(lengths, *rest)
        expected.append(" ".join(f"{_number(offset)}:{_number(held)}" for offset, held in found))
    return _differences(questions, ask(program, questions), expected)
