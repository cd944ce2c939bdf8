"""CrossHair as a second engine for the shipped source.

The model's Z3 term is printed as a Python expression, which is the postcondition of a function that calls the shipped
predicate on the vocabulary's own frozen records; what the constructor of `Inputs` checks is the precondition.
CrossHair, which shares no code with `symbolic`, must confirm it over all paths. CrossHair also exits with 0 when it is
undecided, so its output is read instead of its exit code.

A field that neither the source of the predicate, with all that it calls, nor the model's term names has one value: in
the provable subset a field is read by its name only, so neither side can depend on it. Everything else is symbolic.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import z3
from tpinit.proofs.claims import CheckResult, Verdict
from tpinit.proofs.edited_source import edited, shipped, source_of
from tpinit.proofs.processes import output_of, temporary_folder
from tpinit.proofs.subset.grammar import ENUMS
from tpinit.spec.model import SIZE_OF, Model, Symbols, fresh_symbols
from tpinit.spec.vocabulary import Call, DType, Group, Inputs, Mpu, Section, ViolationCode

__all__ = ["FIXED", "as_python", "check_predicate", "contract", "pick_dtype", "real_inputs", "symbolic_arguments"]

SECONDS_PER_CONDITION, SECONDS_PER_PATH = 600, 60
_CONFIRMED = "info: Confirmed over all paths."
_INFIX = {
    z3.Z3_OP_AND: " and ",
    z3.Z3_OP_OR: " or ",
    z3.Z3_OP_EQ: " == ",
    z3.Z3_OP_DISTINCT: " != ",
    z3.Z3_OP_LT: " < ",
    z3.Z3_OP_LE: " <= ",
    z3.Z3_OP_GT: " > ",
    z3.Z3_OP_GE: " >= ",
    z3.Z3_OP_ADD: " + ",
    z3.Z3_OP_SUB: " - ",
    z3.Z3_OP_MUL: " * ",
    z3.Z3_OP_MOD: " % ",
}


def as_python(term: z3.ExprRef) -> str:
    """Return a Z3 term over the symbols of one input as a Python expression.

    `%` has the same meaning in both for positive divisors, and the model has no others. Raises ValueError for
    an operator that the model does not use.
    """
    if z3.is_int_value(term):
        return str(term.as_long())
    if z3.is_true(term) or z3.is_false(term):
        return str(z3.is_true(term))
    if not z3.is_app(term):
        raise ValueError(f"{term} has no Python form here")
    kind = term.decl().kind()
    parts = [as_python(part) for part in term.children()]
    if kind == z3.Z3_OP_NOT:
        return f"(not {parts[0]})"
    if kind == z3.Z3_OP_ITE:
        return f"({parts[1]} if {parts[0]} else {parts[2]})"
    if term.decl().eq(SIZE_OF):
        return f"{parts[0]}_size"
    if kind == z3.Z3_OP_UNINTERPRETED and not parts:
        name = str(term)
        return f"pick_dtype({name})" if term.sort().name() == "DType" else name
    if kind in _INFIX and len(parts) >= (1 if kind in (z3.Z3_OP_AND, z3.Z3_OP_OR) else 2):
        if kind == z3.Z3_OP_DISTINCT and len(parts) != 2:
            raise ValueError(f"{term.decl()} of {len(parts)} parts has no Python form here")
        return "(" + _INFIX[kind].join(parts) + ")"
    raise ValueError(f"{term.decl()} has no Python form here")


def pick_dtype(number: int) -> DType:
    """Map every integer to a dtype, so that a symbolic integer gives a symbolic dtype."""
    if number == 0:
        return DType.FP32
    return DType.FP16 if number == 1 else DType.BF16


def real_inputs(arguments: Mapping[str, Any]) -> Inputs:
    """Return the `Inputs` of the arguments of a function under CrossHair, of the vocabulary's own records.

    The checks of its constructor are left out: they would hash identities, which makes them concrete.
    """
    a = SimpleNamespace(**arguments)

    def group(name: str) -> Group:
        return Group(getattr(a, name), getattr(a, f"{name}_size"))

    call = section = None
    if a.tpi:
        call = Call(a.call_size, pick_dtype(a.call_dtype), group("call_group") if a.tpg else None)
    if a.section:
        section = Section(
            a.autotp if a.autotp_given else None,
            a.alias if a.alias_given else None,
            pick_dtype(a.dtype) if a.dtype_given else None,
            group("cgroup") if a.cgroup_given else None,
        )
    parts: dict[str, object] = {
        "world_size": a.world,
        "call": call,
        "section": section,
        "precision": pick_dtype(a.precision) if a.precision_given else None,
        "mpu": Mpu(group("mpu_group")) if a.mpu else None,
        "mesh": group("mesh_group") if a.mesh else None,
    }
    inputs = object.__new__(Inputs)
    for field in fields(Inputs):
        object.__setattr__(inputs, field.name, parts[field.name])
    return inputs


# --- which arguments are symbolic ----------------------------------------------------------------------

_GROUPS = ("call_group", "mpu_group", "cgroup", "mesh_group")
# For each field of the vocabulary's records: the arguments that the fields of this name get their value from.
_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "world_size": ("world",),
    "call": ("tpi",),
    "section": ("section",),
    "precision": ("precision_given", "precision"),
    "mpu": ("mpu",),
    "mesh": ("mesh",),
    "autotp_size": ("autotp_given", "autotp"),
    "tp_size": ("alias_given", "alias", "call_size"),
    "dtype": ("call_dtype", "dtype_given", "dtype"),
    "tp_group": ("tpg", "cgroup_given"),
    "identity": _GROUPS,
    "size": tuple(f"{name}_size" for name in _GROUPS),
}
# The value of an argument on which nothing depends. Four groups that are not compared are four.
FIXED: Mapping[str, object] = {
    **dict.fromkeys((name for names in _ARGUMENTS.values() for name in names), False),
    **dict.fromkeys(("world", "autotp", "alias", "call_size", *_ARGUMENTS["size"]), 1),
    **dict.fromkeys(("call_dtype", "dtype", "precision"), 0),
    **{name: place for place, name in enumerate(_GROUPS)},
}


_SCALARS = frozenset(_ARGUMENTS) - {"call", "section", "mpu", "mesh", "tp_group"}
# Of these builtins, and of records that the code makes itself, a comparison may read every field without naming it.
_READS_ALL = frozenset({"set", "sorted", "Call", "Group", "Inputs", "Mpu", "Section"})


def symbolic_arguments(source: str, predicate: str, term: z3.ExprRef) -> list[str]:
    """Return the arguments that the source of a predicate, with all functions that it names, or the term can read."""
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    reached, waiting = {predicate}, [predicate]
    read = set(_names(term))
    compares_groups = False
    while waiting:
        for node in ast.walk(functions[waiting.pop()]):
            if isinstance(node, ast.Attribute):
                read.update(_ARGUMENTS.get(node.attr, ()))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _READS_ALL:
                return list(FIXED)
            elif isinstance(node, ast.Name) and node.id in functions and node.id not in reached:
                reached.add(node.id)
                waiting.append(node.id)
            elif isinstance(node, ast.Compare) and not any(map(_is_scalar, (node.left, *node.comparators))):
                compares_groups = True  # of the records that are given, only two groups can be of one class
    if compares_groups and read & {"cgroup_given", "mesh"}:  # "mpu" and "tpg" are facts too, which every term names
        read.update(_ARGUMENTS["identity"], _ARGUMENTS["size"])
    return [name for name in FIXED if name in read]


def _is_scalar(node: ast.expr) -> bool:
    """Return whether an operand is no record: a constant, arithmetic, an enum's member, or a field that is a scalar."""
    if isinstance(node, ast.Attribute):
        return node.attr in _SCALARS or (isinstance(node.value, ast.Name) and node.value.id in ENUMS)
    return isinstance(node, ast.Constant | ast.BinOp | ast.UnaryOp)


def _names(term: z3.ExprRef) -> Iterator[str]:
    if term.decl().eq(SIZE_OF):
        yield f"{term.arg(0)}_size"
        return
    if z3.is_const(term) and term.decl().kind() == z3.Z3_OP_UNINTERPRETED:
        yield str(term)
    for part in term.children():
        yield from _names(part)


def _preconditions(symbolic: Sequence[str]) -> list[str]:
    """Return the checks of the constructor of `Inputs`, as far as they are about symbolic arguments."""
    found = [f"{name} >= 1" for name in ("world", *_ARGUMENTS["size"]) if name in symbolic]
    if {_GROUPS[0], _ARGUMENTS["size"][0]} <= set(symbolic):
        found += [f"{one} != {other} or {one}_size == {other}_size" for one, other in combinations(_GROUPS, 2)]
    return found


_CONTRACT = '''\
from tpinit.proofs.crosshair import pick_dtype, real_inputs
from tpinit.proofs.edited_source import edited, shipped
from tpinit.spec.vocabulary import ViolationCode

RESOLVER = {resolver}
_HOLDS = {{listed: holds for listed, holds, _ in RESOLVER.VIOLATIONS}}[ViolationCode.{code}]
_FIXED = {fixed}


def predicate({parameters}) -> bool:
    """
    {preconditions}
    post: __return__ == {term}
    """
    return bool(_HOLDS(real_inputs({{**_FIXED, **locals()}})))
'''


def contract(code: ViolationCode, edit: tuple[str, str] | None = None) -> str:
    """Return the module in which CrossHair compares a shipped or an edited predicate with the model's."""
    symbols = fresh_symbols()
    term = z3.substitute(Model(symbols).violation(code), (symbols.tpg, z3.And(symbols.tpi, symbols.tpg)))  # A0
    resolver = shipped if edit is None else edited(*edit)
    name = next(holds.__name__ for listed, holds, _ in resolver.VIOLATIONS if listed is code)
    symbolic = symbolic_arguments(source_of(resolver), name, term)
    truths = {item.name for item in fields(Symbols) if str(item.type) == "z3.BoolRef"}
    return _CONTRACT.format(
        resolver="shipped" if edit is None else f"edited{edit!r}",
        code=code.name,
        fixed={one: value for one, value in FIXED.items() if one not in symbolic},
        parameters=", ".join(f"{one}: {'bool' if one in truths else 'int'}" for one in symbolic),
        preconditions="\n    ".join(f"pre: {one}" for one in _preconditions(symbolic)),
        term=as_python(term),
    )


def check_predicate(code: ViolationCode, edit: tuple[str, str] | None = None) -> CheckResult:
    """Let CrossHair compare the predicate of a violation, in the shipped or the edited resolver, with the model's."""
    with temporary_folder("tpinit-crosshair-") as folder:
        path = folder / f"contract_{code.name.lower()}.py"
        path.write_text(contract(code, edit), encoding="utf-8")
        return _read(_run(path))


def _run(path: Path) -> str:
    command = [sys.executable, "-m", "crosshair", "check", "--report_all"]
    command += ["--per_condition_timeout", str(SECONDS_PER_CONDITION), "--per_path_timeout", str(SECONDS_PER_PATH)]
    return output_of([*command, str(path)], SECONDS_PER_CONDITION + 60)


def _read(output: str) -> CheckResult:
    """Turn CrossHair's output into a verdict. Only its confirmation over all paths is a proof."""
    lines = [line for line in output.splitlines() if line.strip()]
    wrong = [line for line in lines if ": error: " in line]
    if wrong:
        return CheckResult(Verdict.REFUTED, 1, "predicates", wrong[0].partition(": error: ")[2])
    if len(lines) == 1 and lines[0].endswith(_CONFIRMED):
        return CheckResult(Verdict.PROVED, 1, "predicates")
    return CheckResult(Verdict.UNKNOWN, 0, "predicates", lines[-1] if lines else "CrossHair printed nothing")
