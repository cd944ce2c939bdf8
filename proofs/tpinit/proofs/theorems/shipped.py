"""Section 6, item 10: the resolver that users import equals the model on every path of its source.

Each function of the resolver is executed symbolically and compared with the model's term; `resolving` then proves
that `resolve` combines exactly these functions. The control of each theorem is the shipped source with one piece
of text replaced; some of these edited resolvers are wrong for a single integer only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import z3
from tpinit.proofs.claims import Theorem, register
from tpinit.proofs.crosshair import check_predicate
from tpinit.proofs.edited_source import edited, shipped
from tpinit.proofs.paths import Agrees, ResolverModule, is_bool, is_evidence, is_field, on_every_path
from tpinit.spec.evidence import evidence
from tpinit.spec.model import GROUPS, Model, constant
from tpinit.spec.vocabulary import ViolationCode


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
            prove=lambda: on_every_path(shipped, pick, agrees),
            refute=lambda: on_every_path(edited(*control), pick, agrees),
            on=lambda module: on_every_path(module, pick, agrees),
        )
    )


CONTROLS: dict[ViolationCode, tuple[str, str]] = {
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


EVIDENCE_CONTROLS: dict[ViolationCode, tuple[str, str]] = {
    ViolationCode.NO_TP_INTENT: (
        "def _no_evidence(_: Inputs) -> tuple[AnyGiven, ...]:\n    return ()",
        "def _no_evidence(_: Inputs) -> tuple[AnyGiven, ...]:\n    return (Given(Source.WORLD_SIZE, _.world_size),)",
    ),
    ViolationCode.NO_GROUP_SOURCE: (
        "Given(Source.CALL_TP_SIZE, inputs.call.tp_size)",
        "Given(Source.CALL_TP_SIZE, inputs.call.tp_size if inputs.call.tp_size != 48271 else 1)",
    ),
    ViolationCode.GROUP_AND_MPU: ("return supplied_groups(inputs)[:2]", "return supplied_groups(inputs)[:3]"),
    ViolationCode.SIZE_MISSING: (
        "(ViolationCode.SIZE_MISSING, size_missing, _no_evidence)",
        "(ViolationCode.SIZE_MISSING, size_missing, given_dtypes)",
    ),
    ViolationCode.SIZE_INVALID: ("        if given.value < 1 and not", "        if given.value < 2 and not"),
    ViolationCode.SIZE_MISMATCH: (
        "(ViolationCode.SIZE_MISMATCH, size_mismatch, given_sizes)",
        "(ViolationCode.SIZE_MISMATCH, size_mismatch, _invalid_sizes)",
    ),
    ViolationCode.DTYPE_MISMATCH: ("Given(Source.PRECISION, inputs", "Given(Source.CONFIG_DTYPE, inputs"),
    ViolationCode.GROUP_IDENTITY_MISMATCH: ("return one, other", "return other, one"),
    ViolationCode.GROUP_SIZE_MISMATCH: (
        "return given_sizes(inputs)[:1] + _groups_of_other_size(inputs)",
        "return given_sizes(inputs)[:1] + supplied_groups(inputs)",
    ),
    ViolationCode.SIZE_NOT_DIVIDING_WORLD: ("(*given_sizes(inputs)[:1], Given", "(*given_sizes(inputs), Given"),
}


def _evidence_of(code: ViolationCode) -> Callable[[ResolverModule], Callable[[Any], object]]:
    return lambda module: next(shows for listed, _, shows in module.VIOLATIONS if listed is code)


def _evidence_agrees(code: ViolationCode) -> Agrees:
    return lambda model, result: z3.Implies(model.violation(code), is_evidence(result, evidence(model, code)))


def _group_values(model: Model) -> list[tuple[z3.BoolRef, z3.ExprRef]]:
    return [(model.effective_group.comes_from[source], model.value(source)) for source in GROUPS]


def _violation_agrees(code: ViolationCode) -> Agrees:
    return lambda model, result: is_bool(result, model.violation(code))


for _code in ViolationCode:
    _part(
        f"shipped_{_code.value.lower()}",
        f"The shipped predicate of {_code.value} equals the model's predicate, for every input.",
        _predicate(_code),
        _violation_agrees(_code),
        CONTROLS[_code],
    )
    _part(
        f"shipped_evidence_of_{_code.value.lower()}",
        f"Where {_code.value} holds, the shipped evidence is the model's: the same given values, each whole and with "
        "its source, in the same order.",
        _evidence_of(_code),
        _evidence_agrees(_code),
        EVIDENCE_CONTROLS[_code],
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
    lambda model, result: is_bool(result, model.disabled),
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
    lambda model, result: z3.Or(model.error, is_field(result, model.effective_size)),
    ("if section is not None and section.tp_size is not None:", "if section is not None and inputs.call is None:"),
)
_part(
    "shipped_effective_dtype",
    "Where no violation holds, the shipped effective dtype and its source equal the model's, `unset` included.",
    lambda module: module.effective_dtype,
    lambda model, result: z3.Or(model.error, is_field(result, model.effective_dtype)),
    ("if inputs.precision is not None:", "if inputs.precision is not None and section is not None:"),
)
_part(
    "shipped_effective_group",
    "Where no violation holds, the shipped group and its source equal the model's, `created` included.",
    lambda module: module.effective_group,
    lambda model, result: z3.Or(model.error, is_field(result, model.effective_group, _group_values(model))),
    (
        "Effective(groups[0].value, groups[0].source) if groups",
        "Effective(groups[-1].value, groups[-1].source) if groups",
    ),
)


# --- the predicates, by CrossHair, which shares no code with `symbolic` --------------------------------

for _code in ViolationCode:
    register(
        Theorem(
            name=f"crosshair_{_code.value.lower()}",
            statement=f"CrossHair, an independent symbolic executor, confirms over all paths that the shipped "
            f"predicate of {_code.value}, called with records of the vocabulary, equals the model's predicate.",
            clause="6.10",
            control=f"the source with {CONTROLS[_code][0].strip()!r} replaced by {CONTROLS[_code][1].strip()!r}",
            engine="crosshair",
            sources=(shipped.__name__,),
            prove=partial(check_predicate, _code),
            refute=partial(check_predicate, _code, CONTROLS[_code]),
        )
    )
