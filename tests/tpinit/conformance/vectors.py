"""The installed conformance vectors: loading, and conversion between their JSON and the vocabulary.

Standard library only. `load` parses the file on every call, so that callers do not share the vectors' dicts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from tpinit.spec.vocabulary import Call, Decision, DType, Group, Inputs, Mpu, Section

__all__ = ["MalformedInput", "Vector", "answer_of", "input_of", "load", "manifest", "schema", "to_inputs"]

Json = dict[str, Any]


class MalformedInput(ValueError):
    """The input of a vector does not match `vector.schema.json`."""


@dataclass(frozen=True, slots=True)
class Vector:
    """One case: its permanent id, why it exists, the input, and the answer that the contract expects."""

    id: str
    row: int
    clauses: tuple[str, ...]
    why: Json
    smoke: bool
    input: Json
    expected: Json

    def to_json(self) -> Json:
        """Return the vector as a line of `vectors.jsonl` holds it."""
        return {
            "id": self.id,
            "row": self.row,
            "clauses": list(self.clauses),
            "why": self.why,
            "smoke": self.smoke,
            "input": self.input,
            "expected": self.expected,
        }


def _read(name: str) -> str:
    return files("tpinit.spec.vectors").joinpath(name).read_text(encoding="utf-8")


def load(smoke: bool = False) -> tuple[Vector, ...]:
    """Load all vectors in the order of the file, or only the smoke subset."""
    vectors = (Vector(**json.loads(line)) for line in _read("vectors.jsonl").splitlines())
    return tuple(
        Vector(v.id, v.row, tuple(v.clauses), v.why, v.smoke, v.input, v.expected)
        for v in vectors
        if v.smoke or not smoke
    )


def manifest() -> Json:
    """Load the manifest: counts, the hash of the spec, the classes, and which vectors real ranks can run."""
    found: Json = json.loads(_read("manifest.json"))
    return found


def schema() -> Json:
    """Load the JSON Schema of one vector."""
    found: Json = json.loads(_read("vector.schema.json"))
    return found


# --- between JSON and the vocabulary -------------------------------------------------------------------


def _identities(groups: Mapping[str, int]) -> dict[str, int]:
    return {handle: place for place, handle in enumerate(groups, start=1)}


def to_inputs(vector_input: Mapping[str, Any]) -> Inputs:
    """Convert the input of a vector to the vocabulary. Equal handles become the same group object.

    Identities count from 1 in the order of `groups`; `Group.handle` is the handle.
    Raises MalformedInput for a handle that `groups` lacks, a missing key, and any other malformed input.
    """
    try:
        sizes: Mapping[str, int] = vector_input["groups"]
        identities = _identities(sizes)
        groups = {handle: Group(identities[handle], size, handle) for handle, size in sizes.items()}

        def group(handle: str | None) -> Group | None:
            return None if handle is None else groups[handle]

        def dtype(name: str | None) -> DType | None:
            return None if name is None else DType(name)

        call, section, mpu = vector_input["call"], vector_input["section"], vector_input["mpu"]
        return Inputs(
            vector_input["world_size"],
            None if call is None else Call(call["tp_size"], DType(call["dtype"]), group(call["tp_group"])),
            None
            if section is None
            else Section(
                section["autotp_size"], section["tp_size"], dtype(section["dtype"]), group(section["tp_group"])
            ),
            dtype(vector_input["precision"]),
            None if mpu is None else Mpu(groups[mpu["tp_group"]]),
            group(vector_input["mesh"]),
        )
    except KeyError as missing:
        raise MalformedInput(f"the input has no {missing}: {dict(vector_input)}; see vector.schema.json") from None
    except (TypeError, ValueError, AttributeError) as problem:
        raise MalformedInput(f"{problem}: {vector_input}; see vector.schema.json") from None


def input_of(inputs: Inputs) -> Json:
    """Convert an input of the vocabulary to the input of a vector; groups are g1, g2, ... in order of occurrence."""
    call, section, mpu = inputs.call, inputs.section, inputs.mpu
    handles: dict[int, str] = {}
    sizes: dict[str, int] = {}

    def handle(group: Group | None) -> str | None:
        if group is None:
            return None
        name = handles.setdefault(group.identity, f"g{len(handles) + 1}")
        sizes[name] = group.size
        return name

    def name(dtype: DType | None) -> str | None:
        return None if dtype is None else dtype.value

    made = {
        "call": call and {"tp_size": call.tp_size, "dtype": call.dtype.value, "tp_group": handle(call.tp_group)},
        "section": section
        and {
            "autotp_size": section.autotp_size,
            "tp_size": section.tp_size,
            "dtype": name(section.dtype),
            "tp_group": handle(section.tp_group),
        },
        "precision": name(inputs.precision),
        "mpu": mpu and {"tp_group": handle(mpu.tp_group)},
        "mesh": handle(inputs.mesh),
    }
    return {"world_size": inputs.world_size, "groups": sizes, **made}


def answer_of(decision: Decision, groups: Mapping[str, int] | Iterable[str]) -> Json:
    """Convert a decision to the shape of `expected`. `groups` are the input's groups, as given to `to_inputs`.

    Raises ValueError if the decision's group is not one of them.
    """
    handles = {identity: handle for handle, identity in _identities(dict.fromkeys(groups, 0)).items()}
    group = decision.tp_group.value
    if group is not None and group.identity not in handles:
        raise ValueError(f"the decision has {group}, which is not one of the groups {list(handles.values())}")

    def effective(value: object, source: str | None) -> Json:
        return {"value": value, "source": source}

    size, dtype, tp_group = decision.tp_size, decision.dtype, decision.tp_group
    return {
        "row": decision.row,
        "outcome": decision.outcome.value,
        "violations": [violation.code.value for violation in decision.violations],
        "tp_size": effective(size.value, size.source and size.source.value),
        "dtype": effective(dtype.value and dtype.value.value, dtype.source and dtype.source.value),
        "tp_group": effective(
            None if group is None else handles[group.identity], tp_group.source and tp_group.source.value
        ),
        "section_disabled": decision.section_disabled,
    }
