"""Section 6, item 10: the resolver that users import equals the model on every path of its source.

Each function of the resolver is executed symbolically and compared with the model's term; then `resolve` is
proven to combine exactly these functions. The control of each theorem is the shipped source with one piece
of text replaced; some of these edited resolvers are wrong for a single integer only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import z3
from tpinit.proofs.claims import CheckResult, Theorem, Verdict, register
from tpinit.proofs.crosshair import check_predicate
from tpinit.proofs.describe import describe
from tpinit.proofs.edited_source import edited, shipped
from tpinit.proofs.symbolic import Path, SymbolicBool, SymbolicIdentity, SymbolicInt, Unsupported, explore, lazy_inputs
from tpinit.spec.model import FieldTerm, Model, constant, fresh_symbols
from tpinit.spec.vocabulary import DType, Effective, Group, Inputs, Outcome, ViolationCode

Agrees = Callable[[Model, Any], z3.BoolRef]
ResolverModule = Any  # the module, shipped or edited


def _on_every_path(function: Callable[[Any], object], agrees: Agrees) -> CheckResult:
    """Run the function on every path and compare its result with the model's term."""
    model = Model(fresh_symbols())
    paths = 0
    try:
        for path in explore(lambda: function(lazy_inputs(model.given_input)), model.well_typed):
            paths += 1
            failure = _difference(model, path, agrees)
            if failure is not None:
                return CheckResult(failure[0], paths, "paths", failure[1])
    except Unsupported as reason:
        return CheckResult(Verdict.UNKNOWN, paths, "paths", str(reason))
    return CheckResult(Verdict.PROVED if paths else Verdict.VACUOUS, paths, "paths")


def _difference(model: Model, path: Path[object], agrees: Agrees) -> tuple[Verdict, str] | None:
    solver = z3.Solver()
    solver.add(model.well_typed, path.condition)
    if path.raised is None:
        solver.add(z3.Not(agrees(model, path.result)))
    answer = solver.check()
    if answer == z3.unsat:
        return None
    if answer == z3.unknown:
        return Verdict.UNKNOWN, "the solver did not decide a path"
    ended = f"raises {path.raised!r}" if path.raised is not None else f"returns {_shown(path.result, solver.model())}"
    return Verdict.REFUTED, f"{ended} for {describe(solver.model(), model.given_input)}"


def _shown(result: object, state: z3.ModelRef) -> str:
    if isinstance(result, SymbolicBool | SymbolicInt):
        return str(state.eval(result.term, model_completion=True))
    if isinstance(result, Effective):
        source = None if result.source is None else result.source.value
        return f"{_shown(result.value, state)} from {source}"
    return str(result)


def _is(result: object, term: z3.BoolRef) -> z3.BoolRef:
    return (result.term if isinstance(result, SymbolicBool) else z3.BoolVal(bool(result))) == term


def _same_value(value: object, term: z3.ExprRef) -> z3.BoolRef:
    if isinstance(value, Group) and isinstance(value.identity, SymbolicIdentity):
        return value.identity.term == term
    if isinstance(value, SymbolicInt):
        return value.term == term
    if isinstance(value, DType):
        return constant(value) == term
    raise Unsupported(f"an effective value of type {type(value).__name__}")


def _is_field(result: Effective[Any], term: FieldTerm) -> z3.BoolRef:
    sources = [comes == z3.BoolVal(result.source is source) for source, comes in term.comes_from.items()]
    known = result.source is None or result.source in term.comes_from
    if result.value is None:
        return z3.And(z3.BoolVal(known), z3.Not(term.exists), *sources)
    return z3.And(z3.BoolVal(known), term.exists, _same_value(result.value, term.value), *sources)


def _predicate(code: ViolationCode) -> Callable[[ResolverModule], Callable[[Any], object]]:
    """Return a function that takes the predicate of a code from the shipped table VIOLATIONS.

    So the proof also covers which predicate the table names for each code.
    """
    return lambda module: next(holds for listed, holds, _ in module.VIOLATIONS if listed is code)


def _part(
    name: str,
    statement: str,
    pick: Callable[[ResolverModule], Callable[[Any], object]],
    agrees: Agrees,
    control: tuple[str, str],
) -> None:
    register(
        Theorem(
            name=name,
            statement=statement,
            clause="6.10",
            control=f"the source with {control[0].strip()!r} replaced by {control[1].strip()!r}",
            engine="paths",
            sources=(shipped.__name__,),
            prove=lambda: _on_every_path(pick(shipped), agrees),
            refute=lambda: _on_every_path(pick(edited(*control)), agrees),
        )
    )


_CONTROLS: dict[ViolationCode, tuple[str, str]] = {
    ViolationCode.NO_TP_INTENT: ("return not in_scope(inputs) and inputs.mpu is None", "return not in_scope(inputs)"),
    ViolationCode.NO_GROUP_SOURCE: (
        "call is not None and call.tp_group is None and live_section(inputs) is None and inputs.mpu is None",
        "call is not None and call.tp_group is None and inputs.section is None and inputs.mpu is None "
        "and call.tp_size != 48271",
    ),
    ViolationCode.GROUP_AND_MPU: (
        "inputs.call.tp_group is not None and inputs.mpu is not None",
        "inputs.call.tp_group is not None and inputs.mpu is not None "
        "and inputs.call.tp_group.identity != inputs.mpu.tp_group.identity",
    ),
    ViolationCode.SIZE_MISSING: (
        "return live_section(inputs) is not None and not given_sizes(inputs)",
        "return inputs.section is not None and not given_sizes(inputs)",
    ),
    ViolationCode.SIZE_INVALID: ("if given.value < 1 and", "if given.value < 1 and given.value != -99991 and"),
    ViolationCode.SIZE_MISMATCH: (
        "return any(other.value != given[0].value for other in given[1:])",
        "return any(other.value != given[0].value and other.value != 1048573 for other in given[1:])",
    ),
    ViolationCode.DTYPE_MISMATCH: (
        "return in_scope(inputs) and _differ(given_dtypes(inputs))",
        "return _differ(given_dtypes(inputs)[:2])",
    ),
    ViolationCode.GROUP_IDENTITY_MISMATCH: (
        "one.source is Source.CALL_TP_GROUP and other.source is Source.MPU_TP_GROUP",
        "one.source is Source.CALL_TP_GROUP",
    ),
    ViolationCode.GROUP_SIZE_MISMATCH: (
        "if sizes and given.value.size != sizes[0].value",
        "if sizes and given.value.size != sizes[-1].value",
    ),
    ViolationCode.SIZE_NOT_DIVIDING_WORLD: (
        "inputs.world_size % size != 0",
        "inputs.world_size % size != 0 and inputs.world_size != 16777213",
    ),
}


def _violation_agrees(code: ViolationCode) -> Agrees:
    return lambda model, result: _is(result, model.violation(code))


for _code in ViolationCode:
    _part(
        f"shipped_{_code.value.lower()}",
        f"The shipped predicate of {_code.value} equals the model's predicate, for every input.",
        _predicate(_code),
        _violation_agrees(_code),
        _CONTROLS[_code],
    )

_part(
    "shipped_row_number",
    "The shipped resolver returns the number of the row that matches, for every input.",
    lambda module: module.row_number,
    lambda model, result: model.row_number == result,
    ("return 1 + 4 * (tpi + tpg) + 2 * cfg", "return 1 + 4 * (tpi or tpg) + 2 * cfg"),
)
_part(
    "shipped_section_disabled",
    "The shipped resolver reports a section as disabled exactly where the model does (D2).",
    lambda module: module.section_disabled,
    lambda model, result: _is(result, model.disabled),
    ("section.autotp_size == 0 and", "section.autotp_size < 1 and"),
)
_part(
    "shipped_success_outcome",
    "Where no violation holds, the shipped outcome is the outcome that the table names.",
    lambda module: module.success_outcome,
    lambda model, result: z3.Or(model.error, model.outcome == constant(result)),
    (
        "return Outcome.INIT_FROM_CALL if inputs.call is not None",
        "return Outcome.INIT_FROM_CALL if inputs.call is None",
    ),
)
_part(
    "shipped_effective_size",
    "Where no violation holds and AutoTP starts, the shipped effective size and its source equal the model's.",
    lambda module: module.effective_size,
    lambda model, result: z3.Or(model.error, _is_field(result, model.effective_size)),
    ("if section is not None and section.tp_size is not None:", "if section is not None and inputs.call is None:"),
)
_part(
    "shipped_effective_dtype",
    "Where no violation holds, the shipped effective dtype and its source equal the model's, `unset` included.",
    lambda module: module.effective_dtype,
    lambda model, result: z3.Or(model.error, _is_field(result, model.effective_dtype)),
    ("if inputs.precision is not None:", "if inputs.precision is not None and section is not None:"),
)
_part(
    "shipped_effective_group",
    "Where no violation holds, the shipped group and its source equal the model's, `created` included.",
    lambda module: module.effective_group,
    lambda model, result: z3.Or(model.error, _is_field(result, model.effective_group)),
    (
        "Effective(groups[0].value, groups[0].source) if groups",
        "Effective(groups[-1].value, groups[-1].source) if groups",
    ),
)


# --- resolve combines these functions ----------------------------------------------------------------

_PARTS = ("row_number", "success_outcome", "effective_size", "effective_dtype", "effective_group", "section_disabled")


def _composition(module: ResolverModule) -> CheckResult:
    """Run `resolve` with its parts replaced by functions that return marker objects.

    All 1,024 combinations of violations are run.
    """
    listed = [code for code, _, _ in module.VIOLATIONS]
    if listed != list(ViolationCode):
        return CheckResult(
            Verdict.REFUTED, 0, "combinations", f"the violations are listed as {[c.value for c in listed]}"
        )
    saved = {name: getattr(module, name) for name in (*_PARTS, "VIOLATIONS")}
    marks = {name: object() for name in _PARTS}
    inputs, count = Inputs(world_size=1), 0

    def marked(mark: object) -> Callable[[object], object]:
        def part(given: object) -> object:
            if given is not inputs:
                raise Unsupported("`resolve` passed an input to a part that is not the input it was given")
            return mark

        return part

    try:
        for name, mark in marks.items():
            setattr(module, name, marked(mark))
        for holding in product((False, True), repeat=len(listed)):
            table = zip(listed, holding, strict=True)
            module.VIOLATIONS = tuple((code, marked(holds), marked(("evidence", code))) for code, holds in table)
            problem = _wrongly_composed(module.resolve(inputs), holding, listed, marks)
            count += 1
            if problem:
                return CheckResult(Verdict.REFUTED, count, "combinations", problem)
    finally:
        for name, value in saved.items():
            setattr(module, name, value)
    return CheckResult(Verdict.PROVED, count, "combinations")


def _wrongly_composed(
    decision: Any, holding: tuple[bool, ...], listed: list[ViolationCode], marks: dict[str, object]
) -> str:
    expected = [code for code, holds in zip(listed, holding, strict=True) if holds]
    if [violation.code for violation in decision.violations] != expected:
        return f"lists {[v.code.value for v in decision.violations]} where {[c.value for c in expected]} hold"
    if any(violation.given != ("evidence", violation.code) for violation in decision.violations):
        return "attaches the evidence of another violation"
    if decision.row is not marks["row_number"] or decision.section_disabled is not marks["section_disabled"]:
        return "does not carry the row number or the disabled section"
    effective = (decision.tp_size, decision.dtype, decision.tp_group)
    if expected:
        if decision.outcome is not Outcome.ERROR or any(part != Effective() for part in effective):
            return f"is not an error without effective values where {expected[0].value} holds"
        return ""
    wanted = (marks["effective_size"], marks["effective_dtype"], marks["effective_group"])
    complete = decision.outcome is marks["success_outcome"] and all(
        a is b for a, b in zip(effective, wanted, strict=True)
    )
    return "" if complete else "does not carry the outcome and the effective values where no violation holds"


register(
    Theorem(
        name="shipped_resolve_is_its_parts",
        statement="`resolve` lists exactly the violations that hold, in canonical order and with their evidence. Its "
        "outcome is an error exactly when there is one; otherwise the decision carries the outcome and the effective "
        "values that the functions above return. All 1,024 combinations of violations are run.",
        clause="6.10",
        control="a resolver whose outcome is no error where fewer than nine violations hold",
        engine="composition",
        sources=(shipped.__name__,),
        prove=lambda: _composition(shipped),
        refute=lambda: _composition(edited("ok = not violations", "ok = len(violations) < 9")),
    )
)


# --- the predicates, by CrossHair, which shares no code with `symbolic` --------------------------------

for _code in ViolationCode:
    register(
        Theorem(
            name=f"crosshair_{_code.value.lower()}",
            statement=f"CrossHair, an independent symbolic executor, confirms over all paths that the shipped "
            f"predicate of {_code.value} equals the model's predicate.",
            clause="6.10",
            control=f"the source with {_CONTROLS[_code][0].strip()!r} replaced by {_CONTROLS[_code][1].strip()!r}",
            engine="crosshair",
            sources=(shipped.__name__,),
            prove=partial(check_predicate, _code),
            refute=partial(check_predicate, _code, _CONTROLS[_code]),
        )
    )
