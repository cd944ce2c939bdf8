"""Explains a decision: the row and the reason, each field with its source, every violation with its fix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tpinit.reference.spellings import show_int, too_long
from tpinit.spec.vocabulary import (
    AnyGiven,
    Decision,
    DType,
    Effective,
    Group,
    Outcome,
    Source,
    Violation,
    ViolationCode,
)

__all__ = ["describe", "explain", "to_json"]

_SHOWN_RANKS = 16
_LARGEST_WORLD_TO_FACTOR = 1_000_000

_PLACES = {
    Source.CALL_TP_SIZE: "tp_size in tp_model_init",
    Source.CALL_DTYPE: "dtype in tp_model_init",
    Source.CALL_TP_GROUP: "tp_group in tp_model_init",
    Source.CONFIG_AUTOTP_SIZE: "tensor_parallel.autotp_size in the config",
    Source.CONFIG_TP_SIZE: "tensor_parallel.tp.tp_size in the config",
    Source.CONFIG_DTYPE: "tensor_parallel.dtype in the config",
    Source.CONFIG_TP_GROUP: "tensor_parallel.tp.tp_group in the config",
    Source.PRECISION: "bf16.enabled or fp16.enabled in the config",
    Source.MPU_TP_GROUP: "the mpu passed to initialize",
    Source.MESH_TP_GROUP: "the mesh passed to initialize",
    Source.WORLD_SIZE: "the number of ranks in the world",
    Source.CREATED: "no group was supplied, so initialize creates it",
    Source.UNSET: "no dtype was set, so the model keeps its own",
}


# --- the whole decision ----------------------------------------------------------------------------


def explain(decision: Decision) -> str:
    """Return the explanation of a decision, several lines: row, facts, outcome, then fields or violations.

    Total: every `Decision` has an explanation.
    """
    lines = [f"Row {decision.row} of 12: {_facts_text(decision.row)}."]
    if decision.section_disabled:
        lines.append(
            "The config's tensor_parallel section is switched off: autotp_size is 0 and no other size is given (D2). "
            "The rest of the section is ignored."
        )
    if decision.outcome is Outcome.ERROR:
        lines += _violations_text(decision.violations)
    else:
        lines.append(_outcome_text(decision))
        lines += _fields_text(decision)
    return "\n".join(lines)


def _facts(row: int) -> dict[str, bool]:
    """Return the four facts of a row (contract, section 2)."""
    block, place = divmod(row - 1, 4)
    return {"TPI": block > 0, "TPG": block > 1, "CFG": place > 1, "MPU": place % 2 == 1}


def _facts_text(row: int) -> str:
    facts = _facts(row)
    call = "tp_model_init was not called"
    if facts["TPI"]:
        call = f"tp_model_init was called {'with' if facts['TPG'] else 'without'} a tp_group"
    section = f"the config has {'an enabled' if facts['CFG'] else 'no enabled'} tensor_parallel section"
    mpu = f"{'an' if facts['MPU'] else 'no'} mpu was passed to initialize"
    return f"{call}; {section}; {mpu}"


def _outcome_text(decision: Decision) -> str:
    facts = _facts(decision.row)
    if decision.outcome is Outcome.NO_AUTOTP:
        return (
            "No AutoTP: neither a call nor a section requests it (P7). "
            "The mpu may serve another kind of model parallelism."
        )
    if decision.outcome is Outcome.INIT_FROM_CALL:
        direct = "its own tp_group" if facts["TPG"] else "the mpu"
        return f"Initialised from the call: there is no section, and {direct} is a direct group source (P6)."
    filled = ", and the fields that it lacks are filled from the call (P2)" if facts["TPI"] else ""
    return f"Initialised from the config: it is the canonical source of every field (P1){filled}."


def _fields_text(decision: Decision) -> list[str]:
    if decision.outcome is Outcome.NO_AUTOTP:
        # There is no TP group; a precision in the config is still in effect.
        return [_field("dtype", decision.dtype)] if decision.dtype.value is not None else []
    lines = [
        _field("tp_size", decision.tp_size),
        _field("dtype", decision.dtype),
        _field("tp_group", decision.tp_group),
    ]
    size = decision.tp_size.value
    if decision.tp_group.source is Source.CREATED and size:
        count = show_int(decision.world_size // size)
        world = show_int(decision.world_size)
        lines.append(f"    {count} x {show_int(size)} ranks cover the world of {world}")
    if decision.dp_group is not None:
        lines.append(f"  dp_group = {_group(decision.dp_group)}, from {_PLACES[Source.MPU_TP_GROUP]}")
    return lines


def _field(name: str, effective: Effective[int] | Effective[DType] | Effective[Group]) -> str:
    if effective.source is None:
        return f"  {name}: none"
    place = _place(effective.source, effective.value)
    if effective.value is None:
        return f"  {name}: {effective.source.value}; {place}"
    return f"  {name} = {_value(effective.value)}, from {place}"


def _violations_text(violations: Sequence[Violation]) -> list[str]:
    count = len(violations)
    lines = [f"Error: {count} violation{'' if count == 1 else 's'}."]
    for violation in violations:
        message, fix = describe(violation)
        lines += [f"  {violation.code.value}: {message}", f"    fix: {fix}"]
    return lines


# --- given values ----------------------------------------------------------------------------------


def _value(value: int | DType | Group) -> str:
    if isinstance(value, Group):
        return _group(value)
    return value.value if isinstance(value, DType) else show_int(value)


def _group(group: Group) -> str:
    ranks = _ranks(group)
    if ranks is None:
        return f"a group of {show_int(group.size)} rank{'' if group.size == 1 else 's'}"
    shown = ", ".join(str(rank) for rank in ranks[:_SHOWN_RANKS])
    more = f", ... ({len(ranks)} ranks)" if len(ranks) > _SHOWN_RANKS else ""
    return f"the group of rank{'' if len(ranks) == 1 else 's'} {shown}{more}"


def _ranks(group: Group) -> tuple[int, ...] | None:
    handle = group.handle
    if isinstance(handle, tuple) and handle and all(isinstance(rank, int) for rank in handle):
        return handle
    return None


def _place(source: Source, value: object) -> str:
    if source is Source.PRECISION and isinstance(value, DType):
        return f"{value.value}.enabled in the config"
    return _PLACES[source]


def _given(given: AnyGiven) -> str:
    """Return a given value and its place, as the user wrote them."""
    source, value = given.source, _value(given.value)
    if source in (Source.CALL_TP_SIZE, Source.CALL_DTYPE):
        name = "tp_size" if source is Source.CALL_TP_SIZE else "dtype"
        return f"{name}={value} in tp_model_init"
    if source in (Source.CONFIG_AUTOTP_SIZE, Source.CONFIG_TP_SIZE, Source.CONFIG_DTYPE):
        path = _PLACES[source].removesuffix(" in the config")
        return f"{path} = {value} in the config"
    if source is Source.PRECISION:
        return f"{value}.enabled = true in the config"
    if source is Source.WORLD_SIZE:
        return f"a world of {value} ranks"
    return f"{_PLACES[source]} ({value})"


def _list(given: Sequence[AnyGiven], none: str) -> str:
    return ", ".join(_given(one) for one in given) if given else none


# --- the violations, one description each ----------------------------------------------------------


def describe(violation: Violation) -> tuple[str, str]:
    """Return a violation's message, with the given values that cause it, and its fix. Defined for every code."""
    return _DESCRIPTIONS[violation.code](violation.given)


def _no_tp_intent(_: Sequence[AnyGiven]) -> tuple[str, str]:
    return (
        "nothing requests tensor parallelism: no tp_model_init call, no enabled tensor_parallel section, no mpu",
        'add "tensor_parallel": {"autotp_size": N} to the config (N at least 1), or call '
        "tp_model_init(model, tp_size=N, dtype=...) and pass it a tp_group",
    )


def _no_group_source(given: Sequence[AnyGiven]) -> tuple[str, str]:
    return (
        f"no group source: {_list(given, 'a size in tp_model_init')}, and nothing defines which ranks form a group "
        "(P5, P6)",
        "give tp_group to tp_model_init, or pass an mpu to initialize, or add a tensor_parallel section to the config "
        "({} is enough: groups are then created)",
    )


def _group_and_mpu(given: Sequence[AnyGiven]) -> tuple[str, str]:
    return (
        f"two sources of one group: {_list(given, 'tp_group in tp_model_init, the mpu passed to initialize')}; a call "
        "with a tp_group rejects any mpu, even one with the same group (P4)",
        "keep one: leave tp_group out of tp_model_init, or do not pass the mpu",
    )


def _size_missing(_: Sequence[AnyGiven]) -> tuple[str, str]:
    return (
        "the config has a tensor_parallel section, but no size is given",
        "set tensor_parallel.autotp_size in the config, or call tp_model_init with a tp_size",
    )


def _size_invalid(given: Sequence[AnyGiven]) -> tuple[str, str]:
    return (
        f"a size must be at least 1: {_list(given, 'a given size is lower')}",
        "give a size of at least 1 (autotp_size: 0 alone switches tensor parallelism off)",
    )


def _size_mismatch(given: Sequence[AnyGiven]) -> tuple[str, str]:
    message = f"the given sizes differ: {_list(given, 'at least two of them')}"
    if any(one.source is Source.CONFIG_AUTOTP_SIZE and one.value == 0 for one in given):
        message += "; an autotp_size of 0 means disabled, which the other sizes contradict (D2)"
        return message, "set autotp_size to the intended size, or remove the other sizes and the call"
    return message, "give one size everywhere, or give it once and leave the others out of the config"


def _dtype_mismatch(given: Sequence[AnyGiven]) -> tuple[str, str]:
    return (
        f"the given dtypes differ: {_list(given, 'at least two of them')}",
        "give one dtype everywhere, or leave it out of the config where it differs",
    )


def _group_identity_mismatch(given: Sequence[AnyGiven]) -> tuple[str, str]:
    return (
        f"two supplied groups are not the same object: {_list(given, 'two of them')}",
        "pass one group object in both places (a second group of the same ranks is another group), or leave one out",
    )


def _group_size_mismatch(given: Sequence[AnyGiven]) -> tuple[str, str]:
    size = [one for one in given if not isinstance(one.value, Group)]
    groups = [one for one in given if isinstance(one.value, Group)]
    return (
        f"the size is {_list(size, 'given')}, but a supplied group has another size: {_list(groups, 'one of them')}",
        "set the size to the group's number of ranks, or supply a group of that size",
    )


def _size_not_dividing_world(given: Sequence[AnyGiven]) -> tuple[str, str]:
    fix = "choose a size that divides the world, or supply the group"
    world = next((one.value for one in given if one.source is Source.WORLD_SIZE), None)
    if isinstance(world, int) and not isinstance(world, bool) and 1 <= world <= _LARGEST_WORLD_TO_FACTOR:
        sizes = [size for size in range(1, world + 1) if world % size == 0]
        fix = f"choose a size that divides the world ({', '.join(map(str, sizes))}), or supply the group"
    return f"groups must be created, but the size does not divide the world: {_list(given, 'see the call')}", fix


_DESCRIPTIONS: dict[ViolationCode, Callable[[Sequence[AnyGiven]], tuple[str, str]]] = {
    ViolationCode.NO_TP_INTENT: _no_tp_intent,
    ViolationCode.NO_GROUP_SOURCE: _no_group_source,
    ViolationCode.GROUP_AND_MPU: _group_and_mpu,
    ViolationCode.SIZE_MISSING: _size_missing,
    ViolationCode.SIZE_INVALID: _size_invalid,
    ViolationCode.SIZE_MISMATCH: _size_mismatch,
    ViolationCode.DTYPE_MISMATCH: _dtype_mismatch,
    ViolationCode.GROUP_IDENTITY_MISMATCH: _group_identity_mismatch,
    ViolationCode.GROUP_SIZE_MISMATCH: _group_size_mismatch,
    ViolationCode.SIZE_NOT_DIVIDING_WORLD: _size_not_dividing_world,
}


# --- for programs ----------------------------------------------------------------------------------


def to_json(decision: Decision) -> dict[str, object]:
    """Return a decision as a JSON object.

    A field is `{"value", "source"}`, and its value is null if it is created or unset. A group is
    `{"size", "ranks", "identity"}`, and its ranks are null if the handle is not a tuple of ranks. An integer of
    more than 4300 digits is a string, in hexadecimal.
    """
    violations = []
    for violation in decision.violations:
        message, fix = describe(violation)
        given = [{"source": one.source.value, "value": _plain(one.value)} for one in violation.given]
        violations.append({"code": violation.code.value, "message": message, "fix": fix, "given": given})
    return {
        "row": decision.row,
        "facts": _facts(decision.row),
        "outcome": decision.outcome.value,
        "tp_size": _effective(decision.tp_size),
        "dtype": _effective(decision.dtype),
        "tp_group": _effective(decision.tp_group),
        "dp_group": _plain(decision.dp_group),
        "world_size": _plain(decision.world_size),
        "section_disabled": decision.section_disabled,
        "violations": violations,
    }


def _effective(effective: Effective[int] | Effective[DType] | Effective[Group]) -> dict[str, object]:
    return {
        "value": _plain(effective.value),
        "source": None if effective.source is None else effective.source.value,
    }


def _plain(value: int | DType | Group | None) -> object:
    if isinstance(value, Group):
        ranks = _ranks(value)
        return {
            "size": _plain(value.size),
            "ranks": None if ranks is None else [_plain(rank) for rank in ranks],
            "identity": _plain(value.identity),
        }
    if isinstance(value, DType):
        return value.value
    return hex(value) if isinstance(value, int) and too_long(value) else value
