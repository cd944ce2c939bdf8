"""Section 6, item 10: `resolve` combines its parts, on every path of a symbolic input.

The parts run as opaque functions: a predicate returns a free truth value, everything else a mark that can only be
passed on. What `resolve` itself reads of the input is symbolic. So nothing that it adds, drops or does for one input is
hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import z3
from tpinit.proofs.claims import CheckResult, Theorem, Verdict, register
from tpinit.proofs.edited_source import edited, shipped
from tpinit.proofs.paths import ResolverModule
from tpinit.proofs.sealing import sealed
from tpinit.proofs.symbolic import (
    DP_GIVEN,
    Lazy,
    OpaqueValue,
    Path,
    SymbolicBool,
    SymbolicInt,
    Unsupported,
    explore,
    lazy_inputs,
)
from tpinit.spec.model import fresh_symbols
from tpinit.spec.vocabulary import Decision, Effective, Outcome, Violation, ViolationCode

_MARKED = ("row_number", "success_outcome", "effective_size", "effective_dtype", "effective_group")
_DISABLED = z3.Bool("section_is_disabled")
_SYMBOLS = fresh_symbols()
_HOLDS = {code: z3.Bool(f"holds {code.value}") for code in ViolationCode}


def _evidence(code: ViolationCode) -> str:
    return f"evidence of {code.value}"


@contextmanager
def _opaque_parts(module: ResolverModule, inputs: list[Lazy]) -> Iterator[None]:
    """Replace the parts of `resolve`. Each part must be given the very input that `resolve` was given."""

    def part(result: Callable[[], object]) -> Callable[[object], object]:
        def run(given: object) -> object:
            if given is not inputs[-1]:
                raise Unsupported("`resolve` passed an input to a part that is not the input it was given")
            return result()

        return run

    def mark(name: str) -> Callable[[object], object]:
        return part(lambda: OpaqueValue(name))

    def truth(term: z3.BoolRef) -> Callable[[object], object]:
        return part(lambda: SymbolicBool(term))

    saved = {name: getattr(module, name) for name in (*_MARKED, "section_disabled", "VIOLATIONS")}
    try:
        for name in _MARKED:
            setattr(module, name, mark(name))
        module.section_disabled = truth(_DISABLED)
        module.VIOLATIONS = tuple((code, truth(_HOLDS[code]), mark(_evidence(code))) for code in ViolationCode)
        yield
    finally:
        for name, value in saved.items():
            setattr(module, name, value)


def _composition(module: ResolverModule) -> CheckResult:
    listed = [code for code, _, _ in module.VIOLATIONS]
    if listed != list(ViolationCode):
        return CheckResult(Verdict.REFUTED, 0, "paths", f"the violations are listed as {[c.value for c in listed]}")
    inputs: list[Lazy] = []
    paths = 0

    def resolve() -> object:
        inputs.append(lazy_inputs(_SYMBOLS))
        return module.resolve(inputs[-1])

    try:
        with sealed(module), _opaque_parts(module, inputs):
            for path in explore(resolve, z3.BoolVal(True)):
                paths += 1
                problem = _wrong(path)
                inputs.clear()
                if problem:
                    return CheckResult(Verdict.REFUTED, paths, "paths", f"`resolve` {problem}")
    except Unsupported as reason:
        return CheckResult(Verdict.UNKNOWN, paths, "paths", str(reason))
    return CheckResult(Verdict.PROVED if paths else Verdict.VACUOUS, paths, "paths")


def _wrong(path: Path[object]) -> str:
    """Return what is wrong with the decision of one path; empty where nothing is."""
    decision: Any = path.result
    if path.raised is not None:
        return f"raises {path.raised!r}"
    if type(decision) is not Decision:
        return f"returns a {type(decision).__name__}"
    taken = _truths(path.condition)
    holding = [code for code in ViolationCode if taken.get(_HOLDS[code].get_id(), False)]
    if any(_HOLDS[code].get_id() not in taken for code in ViolationCode):
        return "does not ask every predicate"
    if [violation.code for violation in decision.violations] != holding:
        return f"lists {[v.code.value for v in decision.violations]} where {[c.value for c in holding]} hold"
    if any(type(one) is not Violation or not _is_mark(one.given, _evidence(one.code)) for one in decision.violations):
        return "attaches the evidence of another violation"
    return _wrong_rest(decision, bool(holding), taken)


def _wrong_rest(decision: Decision, error: bool, taken: dict[int, bool]) -> str:
    if not _is_mark(decision.row, "row_number"):
        return "does not carry the number of the row"
    disabled: object = decision.section_disabled  # a term stands where the truth value does
    if type(disabled) is not SymbolicBool or not disabled.term.eq(_DISABLED):
        return "does not carry whether the section is disabled"
    fields = {"tp_size": "effective_size", "dtype": "effective_dtype", "tp_group": "effective_group"}
    for field, name in fields.items():
        value = getattr(decision, field)
        if not (_is_nothing(value) if error else _is_mark(value, name)):
            return f"has a wrong {field} where {'a' if error else 'no'} violation holds"
    if not (decision.outcome is Outcome.ERROR if error else _is_mark(decision.outcome, "success_outcome")):
        return f"has a wrong outcome where {'a' if error else 'no'} violation holds"
    world: object = decision.world_size
    if type(world) is not SymbolicInt or not world.term.eq(_SYMBOLS.world):
        return "does not carry the size of the world"
    if not _knows_what_it_passes_on(taken):
        return "does not ask for what it passes on"
    has_dp = taken[_SYMBOLS.mpu.get_id()] and taken[DP_GIVEN.get_id()]
    if not (_is_mark(decision.dp_group, "dp_group") if has_dp else decision.dp_group is None):
        return "does not carry the mpu's data-parallel group"
    live = not taken[_DISABLED.get_id()] and taken[_SYMBOLS.section.get_id()]
    empty = type(decision.carried) is dict and not decision.carried
    return "" if (_is_mark(decision.carried, "carried") if live else empty) else "does not carry the section's keys"


def _knows_what_it_passes_on(taken: dict[int, bool]) -> bool:
    """Return whether a path read the mpu's data-parallel group, and a live section, wherever there may be one."""
    mpu, section = taken.get(_SYMBOLS.mpu.get_id()), taken.get(_SYMBOLS.section.get_id())
    asked_mpu = mpu is False or (mpu is True and DP_GIVEN.get_id() in taken)
    return asked_mpu and (
        taken.get(_DISABLED.get_id()) is True or (_DISABLED.get_id() in taken and section is not None)
    )


def _is_mark(value: object, name: str) -> bool:
    return type(value) is OpaqueValue and value.name == name


def _is_nothing(value: object) -> bool:
    return type(value) is Effective and value.value is None and value.source is None


def _truths(condition: z3.BoolRef) -> dict[int, bool]:
    """Return the truth values that a path took, by the id of the term, of which the path keeps one."""
    parts = condition.children() if z3.is_and(condition) else [condition]
    return {(part.arg(0) if z3.is_not(part) else part).get_id(): not z3.is_not(part) for part in parts}


register(
    Theorem(
        name="shipped_resolve_is_its_parts",
        statement="For every input, `resolve` lists exactly the violations whose predicates hold, in canonical order "
        "and with their evidence. Its outcome is an error without effective values exactly when there is one; else it "
        "carries the outcome and the effective values of its parts. The row, the disabled section, the size of the "
        "world, the mpu's data-parallel group and the other keys of a live section arrive unchanged.",
        clause="6.10",
        control="a resolver that lists no violation where the world has 65,537 ranks",
        engine="paths",
        sources=(shipped.__name__,),
        proves=(f"{shipped.__name__}.resolve",),
        prove=lambda: _composition(shipped),
        on=_composition,
        refute=lambda: _composition(
            edited(
                "evidence in VIOLATIONS if holds(inputs))",
                "evidence in VIOLATIONS if holds(inputs) and inputs.world_size != 65537)",
            )
        ),
    )
)
