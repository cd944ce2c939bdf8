"""CrossHair as a second engine for the shipped source.

The model's Z3 term is printed as a Python expression, which is the postcondition of a function that calls
the shipped predicate. CrossHair, which shares no code with `symbolic`, must confirm it over all paths.
CrossHair also exits with 0 when it is undecided, so its output is read instead of its exit code.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import z3
from tpinit.proofs.claims import CheckResult, Verdict
from tpinit.spec.model import SIZE_OF, Model, Symbols, fresh_symbols
from tpinit.spec.vocabulary import DType, Group, ViolationCode

__all__ = ["as_python", "check_predicate", "eager_inputs", "pick_dtype"]

SECONDS_PER_CONDITION, SECONDS_PER_PATH = 240, 20
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


class PartOnDemand:
    """A record whose fields are created when they are read. Unlike the explorer's, it hides nothing from CrossHair."""

    def __init__(self, **parts: Callable[[], object]) -> None:
        self.__dict__["_parts"] = parts

    def __getattr__(self, name: str) -> object:
        self.__dict__[name] = value = self.__dict__["_parts"][name]()
        return value


def pick_dtype(number: int) -> DType:
    """Map every integer to a dtype, so that a symbolic integer gives a symbolic dtype."""
    if number == 0:
        return DType.FP32
    return DType.FP16 if number == 1 else DType.BF16


def eager_inputs(arguments: Mapping[str, object]) -> PartOnDemand:
    """Return an `Inputs` over the arguments of a function under CrossHair; a part is created when it is read."""
    a = SimpleNamespace(**arguments)

    def group(name: str) -> Group:
        return Group(getattr(a, name), getattr(a, f"{name}_size"))

    def call() -> PartOnDemand:
        return PartOnDemand(
            tp_size=lambda: a.call_size,
            dtype=lambda: pick_dtype(a.call_dtype),
            tp_group=lambda: group("call_group") if a.tpg else None,
        )

    def section() -> PartOnDemand:
        return PartOnDemand(
            autotp_size=lambda: a.autotp if a.autotp_given else None,
            tp_size=lambda: a.alias if a.alias_given else None,
            dtype=lambda: pick_dtype(a.dtype) if a.dtype_given else None,
            tp_group=lambda: group("cgroup") if a.cgroup_given else None,
        )

    return PartOnDemand(
        call=lambda: call() if a.tpi else None,
        section=lambda: section() if a.section else None,
        precision=lambda: pick_dtype(a.precision) if a.precision_given else None,
        mpu=lambda: PartOnDemand(tp_group=lambda: group("mpu_group")) if a.mpu else None,
        mesh=lambda: group("mesh_group") if a.mesh else None,
        world_size=lambda: a.world,
    )


_CONTRACT = '''\
from tpinit.proofs.crosshair import eager_inputs, pick_dtype
from tpinit.proofs.edited_source import edited, shipped
from tpinit.spec.vocabulary import ViolationCode

RESOLVER = {resolver}
_HOLDS = {{listed: holds for listed, holds, _ in RESOLVER.VIOLATIONS}}[ViolationCode.{code}]


def predicate({parameters}) -> bool:
    """
    post: __return__ == {term}
    """
    return bool(_HOLDS(eager_inputs(locals())))
'''


def check_predicate(code: ViolationCode, edit: tuple[str, str] | None = None) -> CheckResult:
    """Let CrossHair compare the predicate of a violation, in the shipped or the edited resolver, with the model's."""
    symbols = fresh_symbols()
    term = z3.substitute(Model(symbols).violation(code), (symbols.tpg, z3.And(symbols.tpi, symbols.tpg)))  # A0
    types = {"z3.BoolRef": "bool"}
    parameters = [f"{item.name}: {types.get(str(item.type), 'int')}" for item in fields(Symbols)]
    parameters += [f"{item.name}_size: int" for item in fields(Symbols) if str(item.type) == "z3.ExprRef"]
    contract = _CONTRACT.format(
        resolver="shipped" if edit is None else f"edited{edit!r}",
        code=code.name,
        parameters=", ".join(parameters),
        term=as_python(term),
    )
    with tempfile.TemporaryDirectory(prefix="tpinit-crosshair-") as folder:
        path = Path(folder) / f"contract_{code.name.lower()}.py"
        path.write_text(contract, encoding="utf-8")
        return _read(_run(path))


def _run(path: Path) -> str:
    command = [sys.executable, "-m", "crosshair", "check", "--report_all"]
    command += ["--per_condition_timeout", str(SECONDS_PER_CONDITION), "--per_path_timeout", str(SECONDS_PER_PATH)]
    done = subprocess.run(
        [*command, str(path)], capture_output=True, text=True, timeout=SECONDS_PER_CONDITION + 60, check=False
    )
    return done.stdout + done.stderr


def _read(output: str) -> CheckResult:
    """Turn CrossHair's output into a verdict. Only its confirmation over all paths is a proof."""
    lines = [line for line in output.splitlines() if line.strip()]
    wrong = [line for line in lines if ": error: " in line]
    if wrong:
        return CheckResult(Verdict.REFUTED, 1, "predicates", wrong[0].partition(": error: ")[2])
    if len(lines) == 1 and lines[0].endswith(_CONFIRMED):
        return CheckResult(Verdict.PROVED, 1, "predicates")
    return CheckResult(Verdict.UNKNOWN, 0, "predicates", lines[-1] if lines else "CrossHair printed nothing")
