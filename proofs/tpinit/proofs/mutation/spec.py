"""Mutants of the contract: every model that differs from it by one small change.

Mutated are the two formulations, the definitions of section 4, the predicates of the ten violations, the
precedence of effective values, and D1, D2, D4, D5 and D6. D3 and D7 to D11 are about reading configs and
about calls, which the model does not have; their mutants are made by `sources`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import pairwise, permutations
from types import MappingProxyType
from typing import Any

import z3
from tpinit.proofs.claims import right_model
from tpinit.proofs.mutants import (
    change_row,
    drop_row,
    forget_mesh,
    no_disabling,
    override,
    redefine,
    reorder_dtypes,
    reorder_groups,
    reorder_sizes,
)
from tpinit.proofs.mutation.consistent import consistent_changes
from tpinit.proofs.mutation.terms import TermChange, apply_change, changes
from tpinit.spec.model import DTYPES, SIZES, FieldTerm, Model, constant
from tpinit.spec.prose import Disagreement, Rule
from tpinit.spec.table import FieldSources, Row
from tpinit.spec.vocabulary import DType, Fact, FieldsFrom, GroupFrom, Outcome, Source, ViolationCode

__all__ = ["SpecMutant", "spec_mutants"]

Apply = Callable[[Model], Model]


@dataclass(frozen=True, slots=True)
class SpecMutant:
    """One mutant of the contract: its target, its name, and the function that makes it from the correct model."""

    target: str
    name: str
    apply: Apply


@cache
def spec_mutants() -> tuple[SpecMutant, ...]:
    """Return all mutants of the contract in a fixed order. Raises ValueError for a duplicate name."""
    found = [*_of_rows(), *_of_columns(), *_of_rules(), *_of_p3(), *_of_definitions(), *_of_predicates()]
    found += [*_of_orders(), *_decisions()]
    rows = [(mutant.name, mutant.apply) for mutant in _of_rows() if " is the error " not in mutant.name]
    found += [SpecMutant("consistent", name, apply) for name, apply in consistent_changes(rows)]
    names = [mutant.name for mutant in found]
    if len(set(names)) != len(names):
        raise ValueError(f"two mutants are named {next(name for name in names if names.count(name) > 1)!r}")
    return tuple(found)


# --- formulation 1 -------------------------------------------------------------------------------------


def _of_rows() -> Iterator[SpecMutant]:
    for row in right_model().rows:
        yield SpecMutant("table", f"row {row.number} deleted", drop_row(row.number).apply)
        for fact, truth in row.facts:
            flipped = change_row(row.number, "", **{fact.name.lower(): not truth})
            yield SpecMutant("table", f"row {row.number} with {fact.name} {'N' if truth else 'Y'}", flipped.apply)
        for says, changed in _other_outcomes(row):
            yield SpecMutant("table", f"row {row.number} {says}", change_row(row.number, "", **changed).apply)


def _other_outcomes(row: Row) -> Iterator[tuple[str, dict[str, object]]]:
    for outcome in Outcome:
        if outcome not in (row.outcome, Outcome.ERROR):
            yield f"ends in {outcome.value}", {"outcome": outcome, "code": None}
    for code in ViolationCode:
        if code is not row.code:
            yield f"is the error {code.value}", {"outcome": Outcome.ERROR, "code": code}
    for column in FieldsFrom:
        if column is not row.fields_from:
            yield f"takes size and dtype from {column.name}", {"fields_from": column}
    for place in GroupFrom:
        if place is not row.group_from:
            yield f"takes its group from {place.name}", {"group_from": place}


def _of_columns() -> Iterator[SpecMutant]:
    for what, right in right_model().column.items():
        for name in ("size", "dtype"):
            order: tuple[Source, ...] = getattr(right, name)
            for says, changed in _other_orders(order):
                apply = _with_column(what, replace(right, **{name: changed}))
                yield SpecMutant("table", f"`{what.value}` means a {name} {says}", apply)


def _other_orders(order: tuple[Source, ...]) -> Iterator[tuple[str, tuple[Source, ...]]]:
    for index, source in enumerate(order):
        yield f"not from {source.value}", (*order[:index], *order[index + 1 :])
    for index, (one, other) in enumerate(pairwise(order)):
        yield f"from {other.value} before {one.value}", (*order[:index], other, one, *order[index + 2 :])


def _with_column(what: FieldsFrom, sources: FieldSources) -> Apply:
    return lambda m: replace(m, column={**m.column, what: sources})


# --- formulation 2 -------------------------------------------------------------------------------------


def _of_rules() -> Iterator[SpecMutant]:
    for index, rule in enumerate(right_model().rules):
        name = f"rule {index + 1} ({rule.clause}, {rule.says})"
        yield SpecMutant("prose", f"{name} deleted", _with_rule(index, None))
        for fact in Fact:
            for says, when in _other_guards(rule, fact):
                yield SpecMutant("prose", f"{name} {says}", _with_rule(index, replace(rule, when=when)))
        for says, changed in _other_sayings(rule):
            yield SpecMutant("prose", f"{name} {says}", _with_rule(index, replace(rule, **changed)))


def _with_rule(index: int, rule: Rule | None) -> Apply:
    def apply(m: Model) -> Model:
        return replace(m, rules=(*m.rules[:index], *([] if rule is None else [rule]), *m.rules[index + 1 :]))

    return apply


def _other_guards(rule: Rule, fact: Fact) -> Iterator[tuple[str, Mapping[Fact, bool]]]:
    if fact in rule.when:
        yield f"with {fact.name} flipped", {**rule.when, fact: not rule.when[fact]}
        yield (
            f"without its condition on {fact.name}",
            {key: truth for key, truth in rule.when.items() if key is not fact},
        )
    else:
        yield f"only with {fact.name}", {**rule.when, fact: True}
        yield f"only without {fact.name}", {**rule.when, fact: False}


def _other_sayings(rule: Rule) -> Iterator[tuple[str, dict[str, Any]]]:
    if rule.outcome is not None:
        for outcome in Outcome:
            if outcome not in (rule.outcome, Outcome.ERROR):
                yield f"says {outcome.value}", {"outcome": outcome}
    if rule.group is not None:
        for place in GroupFrom:
            if place is not rule.group:
                yield f"says the group is from {place.name}", {"group": place}
    if rule.rejects is not None:
        for code in ViolationCode:
            if code is not rule.rejects:
                yield f"rejects by {code.value}", {"rejects": code}
    for name in ("reads_config", "reads_call"):
        yield f"with {name} {not getattr(rule, name)}", {name: not getattr(rule, name)}


def _of_p3() -> Iterator[SpecMutant]:
    for index, what in enumerate(right_model().disagreements):
        name = f"P3's {what.code.value}"
        for source in what.sources:
            left = tuple(one for one in what.sources if one is not source)
            yield SpecMutant("prose", f"{name} without {source.value}", _with_p3(index, replace(what, sources=left)))
        for source in what.groups:
            left = tuple(one for one in what.groups if one is not source)
            yield SpecMutant("prose", f"{name} without {source.value}", _with_p3(index, replace(what, groups=left)))
        if what.except_pair is not None:
            without = replace(what, except_pair=None)
            yield SpecMutant("prose", f"{name} without its exception", _with_p3(index, without))
            other = replace(what, except_pair=(what.sources[0], what.sources[1]))
            yield SpecMutant("prose", f"{name} with another exception", _with_p3(index, other))


def _with_p3(index: int, what: Disagreement) -> Apply:
    return lambda m: replace(m, disagreements=(*m.disagreements[:index], what, *m.disagreements[index + 1 :]))


# --- section 4: definitions and predicates -------------------------------------------------------------

# The definitions of section 4, in order: each uses only earlier ones.
_DEFINITIONS = ("a0", "cfg", "in_scope", "any_group", "created", "error", "starts")


def _words(m: Model, but: str = "") -> list[z3.ExprRef]:
    """Return the terms that section 4 defines; mutation operators treat them as leaves."""
    size, dtype = m.effective_size, m.effective_dtype
    words = [m.given(source) for source in Source if source not in (Source.CREATED, Source.UNSET, Source.WORLD_SIZE)]
    words += [m.violation(code) for code in ViolationCode]
    words += [size.exists, size.value, dtype.exists, dtype.value]
    words += [m.disabled_by(m.given_input), m.by_table.outcome]
    return words + [getattr(m, name) for name in _DEFINITIONS if name != but]


def _distinct(term: z3.BoolRef, words: list[z3.ExprRef]) -> Iterator[TermChange]:
    """Yield the changes of a term whose simplified results are all different."""
    kept = {z3.simplify(term).get_id(): z3.simplify(term)}
    for change in changes(term, words):
        simple = z3.simplify(apply_change(term, change))
        if simple.get_id() not in kept:
            kept[simple.get_id()] = simple
            yield change


def _named(changed: Iterator[TermChange], name: str) -> Iterator[tuple[str, TermChange]]:
    for change in changed:
        yield f"{name} at {'.'.join(map(str, change.place)) or 'the top'}: {change.description}", change


def _of_definitions() -> Iterator[SpecMutant]:
    m = right_model()
    for name in _DEFINITIONS:
        for says, change in _named(_distinct(getattr(m, name), _words(m, but=name)), name):
            yield SpecMutant("definitions", says, redefine(name, "", _changing(change)).apply)
    for says, change in _named(_distinct(m.disabled_by(m.given_input), []), "D2"):
        yield SpecMutant("decisions", says, _disabled_otherwise(change))


def _disabled_otherwise(change: TermChange) -> Apply:
    def apply(m: Model) -> Model:
        right = m.disabled_by
        return replace(m, disabled_by=lambda symbols: apply_change(right(symbols), change))

    return apply


def _of_predicates() -> Iterator[SpecMutant]:
    m = right_model()
    for code in ViolationCode:
        words = [word for word in _words(m) if not word.eq(m.violation(code))]
        for says, change in _named(_distinct(m.violation(code), words), code.value):
            yield SpecMutant("predicates", says, override(code, "", _changing(change)).apply)


def _changing(change: TermChange) -> Callable[[Model, Any], z3.BoolRef]:
    return lambda _m, right: apply_change(right, change)


# --- the order of effective values ---------------------------------------------------------------------


def _of_orders() -> Iterator[SpecMutant]:
    for says, name, right, reorder in (
        ("sizes", "effective_size", SIZES, reorder_sizes),
        ("dtypes", "effective_dtype", DTYPES, reorder_dtypes),
    ):
        others = [order for length in (3, 2) for order in permutations(right, length) if order != right]
        for order in others:
            names = ", ".join(source.value for source in order)
            changed = _and_then(reorder(*order).apply, _naming(name, right))
            yield SpecMutant("orders", f"{says} in the order {names}", changed)
    mesh, config = Source.MESH_TP_GROUP, Source.CONFIG_TP_GROUP
    yield SpecMutant("orders", "the mesh's group before the config's", reorder_groups(mesh, config).apply)
    yield SpecMutant("orders", "no group of the config", reorder_groups(mesh).apply)


def _and_then(first: Apply, second: Apply) -> Apply:
    return lambda m: second(first(m))


def _naming(name: str, sources: Sequence[Source]) -> Apply:
    """Add the sources that a shorter order omits, each as never the source, because theorems look them up."""
    never = {source: z3.BoolVal(False) for source in sources}

    def complete(_m: Model, term: FieldTerm) -> FieldTerm:
        return FieldTerm(term.exists, term.value, MappingProxyType({**never, **term.comes_from}))

    return redefine(name, "", complete).apply


# --- D1, D2, D4, D5, D6 --------------------------------------------------------------------------------


def _decisions() -> Iterator[SpecMutant]:
    yield SpecMutant("decisions", "A0 dropped", redefine("typing", "", _typing_without_a0).apply)
    yield SpecMutant("decisions", "D1: an empty section is absent", redefine("cfg", "", _filled_section).apply)
    yield SpecMutant("decisions", "D2 removed", no_disabling().apply)
    yield SpecMutant("decisions", "D4: the mesh is no group source", forget_mesh().apply)
    yield SpecMutant(
        "decisions",
        "D4: a mesh is a direct source",
        override(ViolationCode.NO_GROUP_SOURCE, "", lambda m, right: z3.And(right, z3.Not(m.given_input.mesh))).apply,
    )
    yield SpecMutant(
        "decisions",
        "D4: creation needs a size in the section",
        override(ViolationCode.SIZE_MISSING, "", _needs_own_size).apply,
    )
    yield SpecMutant("decisions", "D5: tp.tp_size is no size", _alias_ignored)
    yield SpecMutant("decisions", "D6: an unset dtype is fp32", redefine("effective_dtype", "", _fp32_if_unset).apply)
    yield SpecMutant("decisions", "D6: precision counts only with a section", _precision_only_with_section)


def _typing_without_a0(_m: Model, right: Mapping[str, z3.BoolRef]) -> Mapping[str, z3.BoolRef]:
    return MappingProxyType({name: term for name, term in right.items() if not name.startswith("A0")})


def _filled_section(m: Model, right: z3.BoolRef) -> z3.BoolRef:
    s = m.given_input
    return z3.And(right, z3.Or(s.autotp_given, s.alias_given, s.dtype_given, s.cgroup_given))


def _needs_own_size(m: Model, right: z3.BoolRef) -> z3.BoolRef:
    own = z3.Or(m.given(Source.CONFIG_AUTOTP_SIZE), m.given(Source.CONFIG_TP_SIZE))
    return z3.Or(right, z3.And(m.created, z3.Not(own)))


def _alias_ignored(m: Model) -> Model:
    """Return the model without the alias: never given, invalid, in disagreement or effective."""
    sizes = (ViolationCode.SIZE_MISSING, ViolationCode.SIZE_INVALID, ViolationCode.SIZE_MISMATCH)
    changed = {code: _without_alias(m.predicates[code]) for code in sizes}
    order = tuple(source for source in m.size_order if source is not Source.CONFIG_TP_SIZE)
    without = replace(m, size_order=order, predicates=MappingProxyType({**m.predicates, **changed}))
    return _naming("effective_size", SIZES)(without)


def _without_alias(right: Callable[[Model], z3.BoolRef]) -> Callable[[Model], z3.BoolRef]:
    return lambda m: z3.substitute(right(m), (m.given(Source.CONFIG_TP_SIZE), z3.BoolVal(False)))


def _fp32_if_unset(_m: Model, right: FieldTerm) -> FieldTerm:
    value = z3.If(right.exists, right.value, constant(DType.FP32))
    return FieldTerm(z3.BoolVal(True), value, right.comes_from)


def _precision_only_with_section(m: Model) -> Model:
    mutated = type("MutatedModel", (Model,), {"given": _given_precision_in_section})
    return mutated(**{item.name: getattr(m, item.name) for item in fields(Model)})  # type: ignore[no-any-return] # made above


def _given_precision_in_section(m: Model, source: Source) -> z3.BoolRef:
    right = Model.given(m, source)
    return z3.And(m.cfg, right) if source is Source.PRECISION else right
