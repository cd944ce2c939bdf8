"""The reference resolver: decides one input by the rules of the contract.

Pure, total, standard library only. It implements the prose and the definitions of section 4 and does not read the
table. It is written in the provable subset of Python (docs/proofs.md), and the proofs compute this shipped source.
Every predicate below takes the whole `Inputs`, so that the functions that are proven are the functions that run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tpinit.spec.vocabulary import (
    AnyGiven,
    Decision,
    DType,
    Effective,
    Given,
    Group,
    Inputs,
    Outcome,
    Section,
    Source,
    Violation,
    ViolationCode,
)

__all__ = ["resolve"]


# --- what is given ---------------------------------------------------------------------------------


def section_disabled(inputs: Inputs) -> bool:
    """D2: `autotp_size: 0` switches the section off where no other size is given."""
    section = inputs.section
    return section is not None and section.autotp_size == 0 and section.tp_size is None and inputs.call is None


def live_section(inputs: Inputs) -> Section | None:
    """The section when CFG holds (D1, D2), else None: its fields exist only then."""
    return None if section_disabled(inputs) else inputs.section


def in_scope(inputs: Inputs) -> bool:
    """TPI or CFG: tensor parallelism is requested."""
    return inputs.call is not None or live_section(inputs) is not None


def given_sizes(inputs: Inputs) -> tuple[Given[int], ...]:
    """Every given size, the effective one first: the config is canonical (P1, P2, D5)."""
    section = live_section(inputs)
    sizes: list[Given[int]] = []
    if section is not None and section.autotp_size is not None:
        sizes.append(Given(Source.CONFIG_AUTOTP_SIZE, section.autotp_size))
    if section is not None and section.tp_size is not None:
        sizes.append(Given(Source.CONFIG_TP_SIZE, section.tp_size))
    if inputs.call is not None:
        sizes.append(Given(Source.CALL_TP_SIZE, inputs.call.tp_size))
    return tuple(sizes)


def given_dtypes(inputs: Inputs) -> tuple[Given[DType], ...]:
    """Every given dtype, the effective one first (P1, P2, D6)."""
    section = live_section(inputs)
    dtypes: list[Given[DType]] = []
    if section is not None and section.dtype is not None:
        dtypes.append(Given(Source.CONFIG_DTYPE, section.dtype))
    if inputs.precision is not None:
        dtypes.append(Given(Source.PRECISION, inputs.precision))
    if inputs.call is not None:
        dtypes.append(Given(Source.CALL_DTYPE, inputs.call.dtype))
    return tuple(dtypes)


def supplied_groups(inputs: Inputs) -> tuple[Given[Group], ...]:
    """Every supplied group, the effective one first: the call's, the mpu's, the config's, the mesh's."""
    section = live_section(inputs)
    groups: list[Given[Group]] = []
    if inputs.call is not None and inputs.call.tp_group is not None:
        groups.append(Given(Source.CALL_TP_GROUP, inputs.call.tp_group))
    if inputs.mpu is not None:
        groups.append(Given(Source.MPU_TP_GROUP, inputs.mpu.tp_group))
    if section is not None and section.tp_group is not None:
        groups.append(Given(Source.CONFIG_TP_GROUP, section.tp_group))
    if inputs.mesh is not None:
        groups.append(Given(Source.MESH_TP_GROUP, inputs.mesh))
    return tuple(groups)


def created(inputs: Inputs) -> bool:
    """A group is to be created: CFG holds and no group is supplied (D4)."""
    return live_section(inputs) is not None and not supplied_groups(inputs)


# --- the violations, one predicate each ------------------------------------------------------------


def no_tp_intent(inputs: Inputs) -> bool:
    """P7: nothing at all was given."""
    return not in_scope(inputs) and inputs.mpu is None


def no_group_source(inputs: Inputs) -> bool:
    """P6, D4: a call alone, with neither of the two direct sources."""
    call = inputs.call
    return call is not None and call.tp_group is None and live_section(inputs) is None and inputs.mpu is None


def group_and_mpu(inputs: Inputs) -> bool:
    """P4: a call's own group rejects any mpu, even one with the same group."""
    return inputs.call is not None and inputs.call.tp_group is not None and inputs.mpu is not None


def size_missing(inputs: Inputs) -> bool:
    """CFG holds and no size is given."""
    return live_section(inputs) is not None and not given_sizes(inputs)


def size_invalid(inputs: Inputs) -> bool:
    """D2, D7: a given size is below 1. An `autotp_size` of 0 means disabled, and is not invalid."""
    return bool(_invalid_sizes(inputs))


def size_mismatch(inputs: Inputs) -> bool:
    """P3, D5: two given sizes differ."""
    return _differ(given_sizes(inputs))


def dtype_mismatch(inputs: Inputs) -> bool:
    """P3: two given dtypes differ, and tensor parallelism is requested."""
    return in_scope(inputs) and _differ(given_dtypes(inputs))


def group_identity_mismatch(inputs: Inputs) -> bool:
    """P3: two supplied groups are not the same object. The call's and the mpu's are left to P4."""
    return in_scope(inputs) and bool(_differing_groups(inputs))


def group_size_mismatch(inputs: Inputs) -> bool:
    """P3: a supplied group has another size than the effective one."""
    return in_scope(inputs) and bool(_groups_of_other_size(inputs))


def size_not_dividing_world(inputs: Inputs) -> bool:
    """A group is to be created, and the effective size does not divide the world."""
    sizes = given_sizes(inputs)
    if not created(inputs) or not sizes:
        return False
    size = sizes[0].value
    return size >= 1 and inputs.world_size % size != 0


def _differ(given: Sequence[Given[int]] | Sequence[Given[DType]]) -> bool:
    return any(other.value != given[0].value for other in given[1:])


def _invalid_sizes(inputs: Inputs) -> tuple[Given[int], ...]:
    return tuple(
        given
        for given in given_sizes(inputs)
        if given.value < 1 and not (given.source is Source.CONFIG_AUTOTP_SIZE and given.value == 0)
    )


def _differing_groups(inputs: Inputs) -> tuple[Given[Group], ...]:
    """The first two supplied groups that must be the same object and are not."""
    supplied = supplied_groups(inputs)
    for index, one in enumerate(supplied):
        for other in supplied[index + 1 :]:
            excepted = one.source is Source.CALL_TP_GROUP and other.source is Source.MPU_TP_GROUP
            if not excepted and one.value.identity != other.value.identity:
                return one, other
    return ()


def _call_and_mpu_group(inputs: Inputs) -> tuple[Given[Group], ...]:
    return supplied_groups(inputs)[:2]


def _groups_of_other_size(inputs: Inputs) -> tuple[Given[Group], ...]:
    sizes = given_sizes(inputs)
    return tuple(given for given in supplied_groups(inputs) if sizes and given.value.size != sizes[0].value)


def _size_and_groups_of_other_size(inputs: Inputs) -> tuple[AnyGiven, ...]:
    return given_sizes(inputs)[:1] + _groups_of_other_size(inputs)


def _size_and_world(inputs: Inputs) -> tuple[AnyGiven, ...]:
    return (*given_sizes(inputs)[:1], Given(Source.WORLD_SIZE, inputs.world_size))


# --- the decision ----------------------------------------------------------------------------------

_Predicate = Callable[[Inputs], bool]
_Evidence = Callable[[Inputs], tuple[AnyGiven, ...]]


def _no_evidence(_: Inputs) -> tuple[AnyGiven, ...]:
    return ()


# In canonical order (section 4). The evidence is the given values that cause the violation.
VIOLATIONS: tuple[tuple[ViolationCode, _Predicate, _Evidence], ...] = (
    (ViolationCode.NO_TP_INTENT, no_tp_intent, _no_evidence),
    (ViolationCode.NO_GROUP_SOURCE, no_group_source, given_sizes),
    (ViolationCode.GROUP_AND_MPU, group_and_mpu, _call_and_mpu_group),
    (ViolationCode.SIZE_MISSING, size_missing, _no_evidence),
    (ViolationCode.SIZE_INVALID, size_invalid, _invalid_sizes),
    (ViolationCode.SIZE_MISMATCH, size_mismatch, given_sizes),
    (ViolationCode.DTYPE_MISMATCH, dtype_mismatch, given_dtypes),
    (ViolationCode.GROUP_IDENTITY_MISMATCH, group_identity_mismatch, _differing_groups),
    (ViolationCode.GROUP_SIZE_MISMATCH, group_size_mismatch, _size_and_groups_of_other_size),
    (ViolationCode.SIZE_NOT_DIVIDING_WORLD, size_not_dividing_world, _size_and_world),
)


def row_number(inputs: Inputs) -> int:
    """The row of the four facts, 1 to 12: TPI and TPG pick the block of four, CFG and MPU the row in it."""
    tpi = inputs.call is not None
    tpg = inputs.call is not None and inputs.call.tp_group is not None
    cfg = live_section(inputs) is not None
    return 1 + 4 * (tpi + tpg) + 2 * cfg + (inputs.mpu is not None)


def success_outcome(inputs: Inputs) -> Outcome:
    """The outcome where no violation holds (P1, P7)."""
    if live_section(inputs) is not None:
        return Outcome.INIT_FROM_CONFIG
    return Outcome.INIT_FROM_CALL if inputs.call is not None else Outcome.NO_AUTOTP


def effective_size(inputs: Inputs) -> Effective[int]:
    """The config's size, else its alias, else the call's (P1, P2, D5)."""
    sizes = given_sizes(inputs)
    return Effective(sizes[0].value, sizes[0].source) if sizes else Effective()


def effective_dtype(inputs: Inputs) -> Effective[DType]:
    """The section's dtype, else the precision, else the call's, else unset: the model keeps its own (D6)."""
    dtypes = given_dtypes(inputs)
    return Effective(dtypes[0].value, dtypes[0].source) if dtypes else Effective(None, Source.UNSET)


def effective_group(inputs: Inputs) -> Effective[Group]:
    """The TP group: a supplied one, else one to be created. Without AutoTP there is none."""
    if not in_scope(inputs):
        return Effective()
    groups = supplied_groups(inputs)
    return Effective(groups[0].value, groups[0].source) if groups else Effective(None, Source.CREATED)


def resolve(inputs: Inputs) -> Decision:
    """Decide what `initialize` must do for these inputs (the whole contract).

    Total and deterministic: never raises on well-typed inputs, never changes them. The outcome is an error exactly when
    a violation holds; the decision then lists all that hold, in canonical order, and has no effective values.
    """
    section = live_section(inputs)
    violations = tuple(Violation(code, evidence(inputs)) for code, holds, evidence in VIOLATIONS if holds(inputs))
    ok = not violations
    return Decision(
        row=row_number(inputs),
        outcome=success_outcome(inputs) if ok else Outcome.ERROR,
        tp_size=effective_size(inputs) if ok else Effective(),
        dtype=effective_dtype(inputs) if ok else Effective(),
        tp_group=effective_group(inputs) if ok else Effective(),
        violations=violations,
        section_disabled=section_disabled(inputs),
        world_size=inputs.world_size,
        dp_group=inputs.mpu.dp_group if inputs.mpu is not None else None,
        carried=section.carried if section is not None else {},
    )
