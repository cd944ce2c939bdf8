"""Names of the model's terms in the language of the contract: `no SIZE_MISMATCH holds`, `call.tp_size is given`.

Z3 shares equal terms, so a term that is built a second time has the same id and the same name. A term
without a name is printed operator by operator, with the names of its subterms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, fields
from enum import Enum
from functools import lru_cache

import z3
from tpinit.spec.model import SIZE_OF, Model, Symbols, constant, fresh_symbols
from tpinit.spec.vocabulary import FieldsFrom, GroupFrom, Outcome, Source, ViolationCode

__all__ = ["conjuncts", "name_of"]

# The Boolean symbols: the text for true and the text for false.
FACTS: Mapping[str, tuple[str, str]] = {
    "tpi": ("TPI", "no TPI"),
    "tpg": ("TPG", "no TPG"),
    "section": ("the config has a section", "the config has no section"),
    "mpu": ("MPU", "no MPU"),
    "mesh": ("there is a mesh", "there is no mesh"),
    "autotp_given": ("the section has autotp_size", "the section has no autotp_size"),
    "alias_given": ("the section has tp.tp_size", "the section has no tp.tp_size"),
    "dtype_given": ("the section has a dtype", "the section has no dtype"),
    "precision_given": ("a precision is enabled", "no precision is enabled"),
    "cgroup_given": ("the section has tp.tp_group", "the section has no tp.tp_group"),
}
VALUES: Mapping[str, str] = {
    "world": "world_size",
    "call_size": "call.tp_size",
    "autotp": "config.autotp_size",
    "alias": "config.tp.tp_size",
    "call_dtype": "call.dtype",
    "dtype": "config.dtype",
    "precision": "precision",
    "call_group": "call.tp_group",
    "cgroup": "config.tp.tp_group",
    "mpu_group": "mpu.tp_group",
    "mesh_group": "mesh.tp_group",
}
_OTHER = " of the other input"
_INFIX = {
    z3.Z3_OP_AND: " and ",
    z3.Z3_OP_OR: " or ",
    z3.Z3_OP_EQ: " is ",
    z3.Z3_OP_LT: " < ",
    z3.Z3_OP_LE: " <= ",
    z3.Z3_OP_GT: " > ",
    z3.Z3_OP_GE: " >= ",
    z3.Z3_OP_ADD: " + ",
    z3.Z3_OP_SUB: " - ",
    z3.Z3_OP_MUL: " * ",
    z3.Z3_OP_MOD: " mod ",
    z3.Z3_OP_IMPLIES: " implies ",
}
_TIGHT = (z3.Z3_OP_ADD, z3.Z3_OP_SUB, z3.Z3_OP_MUL, z3.Z3_OP_MOD)


def _named(model: Model) -> Iterator[tuple[z3.ExprRef, str]]:
    """Yield every named term of one input. Where a term has two names, the first one counts."""
    s = model.given_input
    for name, term in model.typing.items():
        yield term, name
    for code in ViolationCode:
        yield z3.Not(model.violation(code)), f"no {code.value} holds"
        yield model.violation(code), f"{code.value} holds"
    # A call always gives both, so one term stands for both.
    yield model.given(Source.CALL_TP_SIZE), "call.tp_size and call.dtype are given"
    for source in Source:
        if source not in (Source.CREATED, Source.UNSET, Source.WORLD_SIZE):
            yield model.given(source), f"{source.value} is given"
            yield z3.Not(model.given(source)), f"{source.value} is not given"
    for item in fields(Symbols):
        term = getattr(s, item.name)
        if item.name in FACTS:
            yield term, FACTS[item.name][0]
            yield z3.Not(term), FACTS[item.name][1]
        else:
            yield term, VALUES[item.name]
    yield from (
        (model.cfg, "CFG"),
        (z3.Not(model.cfg), "no CFG"),
        (model.in_scope, "TPI or CFG"),
        (model.disabled, "the section is disabled"),
        (model.created, "a group is to be created"),
        (model.error, "a violation holds"),
        (model.row_number, "the row's number"),
        (model.outcome, "the outcome"),
        (z3.Or(*(_is(model.by_table.outcome, one) for one in _STARTING)), "the row starts AutoTP"),
    )
    for row in model.rows:
        yield model.row_holds(row), f"row {row.number} holds"
    for column, title, members in _COLUMNS:
        for formulation, verdict in (("the row", model.by_table), ("the prose", model.by_prose)):
            term = getattr(verdict, column)
            yield term, f"{formulation}'s {title}"
            for member in members:
                yield _is(term, member), f"{formulation}'s {title} is {member.value}"
    for word, field in (
        ("size", model.effective_size),
        ("dtype", model.effective_dtype),
        ("group", model.effective_group),
    ):
        for source, comes in field.comes_from.items():
            made = source in (Source.CREATED, Source.UNSET)
            yield comes, f"the {word} is {source.value}" if made else f"the {word} comes from {source.value}"
        yield field.exists, f"there is an effective {word}"
        yield field.value, f"the effective {word}"


_STARTING = (Outcome.INIT_FROM_CONFIG, Outcome.INIT_FROM_CALL)
_COLUMNS: tuple[tuple[str, str, type[Enum]], ...] = (
    ("outcome", "outcome", Outcome),
    ("code", "code", ViolationCode),
    ("fields_from", "size and dtype source", FieldsFrom),
    ("group_from", "group source", GroupFrom),
)


def _is(term: z3.DatatypeRef, member: Enum) -> z3.BoolRef:
    return term == constant(member)


@lru_cache(maxsize=1)
def _names() -> Mapping[int, tuple[z3.ExprRef, str]]:
    """Map the id of each named term to the term and its name. The term is kept because Z3 reuses ids of freed terms."""
    names: dict[int, tuple[z3.ExprRef, str]] = {}
    for suffix, owner in (("", ""), ("_other", _OTHER)):
        for term, name in _named(Model(fresh_symbols(suffix))):
            names.setdefault(term.get_id(), (term, name + owner))
    return names


def conjuncts(term: z3.BoolRef) -> list[z3.BoolRef]:
    """Return the conjuncts of a premise in order, without repetitions."""
    parts: dict[int, z3.BoolRef] = {}
    for part in _flat(term):
        parts.setdefault(part.get_id(), part)
    return list(parts.values())


def _flat(term: z3.BoolRef) -> Iterator[z3.BoolRef]:
    if z3.is_true(term):
        return
    if z3.is_and(term) and term.get_id() not in _names():
        for part in term.children():
            yield from _flat(part)
    elif z3.is_not(term) and z3.is_or(term.arg(0)):
        for part in term.arg(0).children():
            yield from _flat(z3.Not(part))
    else:
        yield term


def name_of(term: z3.ExprRef) -> str:
    """Return the text of a term in the language of the contract."""
    known = _names().get(term.get_id())
    if known is not None:
        return known[1]
    kind = term.decl().kind()
    both = _of_both(term) if kind in (z3.Z3_OP_AND, z3.Z3_OP_EQ) else ""
    if both:
        return both
    if kind in _FORMS:
        return _FORMS[kind](term)
    if kind in _INFIX:
        return _INFIX[kind].join(_bracketed(part, kind) for part in term.children())
    if kind == z3.Z3_OP_DT_CONSTRUCTOR:
        return str(term).rpartition(".")[2]
    if term.decl().eq(SIZE_OF):
        return f"the size of {name_of(term.arg(0))}"
    if not term.children():
        return str(term)
    return f"{term.decl().name()}({', '.join(map(name_of, term.children()))})"


def _of_both(term: z3.ExprRef) -> str:
    """Return a short text for a term that states the same about both inputs; empty for another term."""
    if term.num_args() != 2 or not z3.substitute(term.arg(0), *_others()).eq(term.arg(1)):
        return ""
    if term.arg(0).eq(term.arg(1)):
        return ""
    return name_of(term.arg(0)) + (" in both inputs" if z3.is_and(term) else ": the same in both inputs")


@lru_cache(maxsize=1)
def _others() -> list[tuple[z3.ExprRef, z3.ExprRef]]:
    return list(zip(astuple(fresh_symbols()), astuple(fresh_symbols("_other")), strict=True))


def _bracketed(part: z3.ExprRef, inside: int) -> str:
    text = name_of(part)
    plain = not part.children() or part.get_id() in _names() or part.decl().eq(SIZE_OF)
    loose = inside in (z3.Z3_OP_AND, z3.Z3_OP_OR, z3.Z3_OP_IMPLIES) or part.decl().kind() in _TIGHT
    binds = part.decl().kind() not in (z3.Z3_OP_AND, z3.Z3_OP_OR, z3.Z3_OP_IMPLIES, z3.Z3_OP_ITE)
    return text if plain or (loose and binds) else f"({text})"


_FORMS: Mapping[int, Callable[[z3.ExprRef], str]] = {
    z3.Z3_OP_DISTINCT: lambda term: (
        f"{name_of(term.arg(0))} is not {name_of(term.arg(1))}"
        if term.num_args() == 2
        else f"{', '.join(map(name_of, term.children()))} all differ"
    ),
    z3.Z3_OP_NOT: lambda term: f"not {_bracketed(term.arg(0), z3.Z3_OP_NOT)}",
    z3.Z3_OP_ITE: lambda term: (
        f"{_bracketed(term.arg(1), z3.Z3_OP_ITE)} if {name_of(term.arg(0))}, else {name_of(term.arg(2))}"
    ),
}
