"""The symbolic input of a translated resolver, and the decision that the model of the contract requires."""

from __future__ import annotations

from collections.abc import Mapping

import z3
from tpinit.proofs.translation.values import (
    EMPTY_MAPPING,
    NOTHING,
    Items,
    Maybe,
    OpaqueSort,
    Record,
    Value,
    choose,
    lift,
)
from tpinit.spec.evidence import evidence
from tpinit.spec.model import GROUPS, SIZE_OF, FieldTerm, Model
from tpinit.spec.symbols import GroupSort
from tpinit.spec.vocabulary import Call, Effective, Given, Group, Inputs, Mpu, Section, Source, ViolationCode

__all__ = ["carried", "dp_group", "effective", "inputs_of", "shown"]

_CARRIED, _DP_GROUP = z3.Consts("carried dp_group", OpaqueSort)
_DP_GIVEN = z3.Bool("dp_given")


def _group(identity: z3.ExprRef) -> Record:
    """Return a group of the input. Its handle is a free value of its own, whatever its identity is."""
    handle = z3.Const(f"handle of {identity}", OpaqueSort)
    return Record(Group, {"identity": identity, "size": SIZE_OF(identity), "handle": handle})


def inputs_of(model: Model) -> Record:
    """Return the symbolic input of a model as a record."""
    s = model.given_input
    call = {"tp_size": s.call_size, "dtype": s.call_dtype, "tp_group": Maybe(s.tpg, _group(s.call_group))}
    section = {
        "autotp_size": Maybe(s.autotp_given, s.autotp),
        "tp_size": Maybe(s.alias_given, s.alias),
        "dtype": Maybe(s.dtype_given, s.dtype),
        "tp_group": Maybe(s.cgroup_given, _group(s.cgroup)),
        "carried": _CARRIED,
    }
    mpu = {"tp_group": _group(s.mpu_group), "dp_group": Maybe(_DP_GIVEN, _DP_GROUP)}
    return Record(
        Inputs,
        {
            "world_size": s.world,
            "call": Maybe(s.tpi, Record(Call, call)),
            "section": Maybe(s.section, Record(Section, section)),
            "precision": Maybe(s.precision_given, s.precision),
            "mpu": Maybe(s.mpu, Record(Mpu, mpu)),
            "mesh": Maybe(s.mesh, _group(s.mesh_group)),
        },
    )


def _whole(term: z3.ExprRef) -> Value:
    return _group(term) if term.sort() == GroupSort else term


def shown(model: Model, code: ViolationCode) -> Items:
    """Return the evidence that the model requires of a violation."""
    return Items(
        tuple(
            (each.holds, Record(Given, {"source": lift(each.source), "value": _whole(each.value)}))
            for each in evidence(model, code)
        )
    )


def effective(model: Model, error: z3.BoolRef, term: FieldTerm) -> Record:
    """Return an effective value with its source: none where the decision is an error."""
    success = z3.Not(error)
    source = _first({source: lift(source) for source in term.comes_from}, term.comes_from)
    value: Value = term.value
    if value.sort() == GroupSort:
        value = _first({each: _group(model.value(each)) for each in GROUPS}, term.comes_from)
    has_source = z3.Or(*term.comes_from.values())
    fields = {"value": Maybe(z3.And(success, term.exists), value), "source": Maybe(z3.And(success, has_source), source)}
    return Record(Effective, fields)


def _first(values: Mapping[Source, Value], comes_from: Mapping[Source, z3.BoolRef]) -> Value:
    """Return the value of the first source that is the field's; any value where none is."""
    found: Value = None
    for source, value in reversed(list(values.items())):
        found = value if found is None else choose(comes_from[source], value, found)
    return found


def dp_group(model: Model) -> Value:
    """Return the mpu's data-parallel group, if there are both."""
    return choose(model.given_input.mpu, Maybe(_DP_GIVEN, _DP_GROUP), NOTHING)


def carried(model: Model) -> Value:
    """Return the other keys of the section where CFG, else an empty mapping."""
    return choose(model.cfg, _CARRIED, EMPTY_MAPPING)
