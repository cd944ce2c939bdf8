"""The reason of each vector: a flag, the clauses, and the effect of an implementation error.

Each reason has a test; the reason of a vector is the first whose test its input and decision pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tpinit.spec.vocabulary import Decision, Inputs, Outcome, Section, Source, ViolationCode

__all__ = ["REASONS", "VectorReason", "reason"]


@dataclass(frozen=True, slots=True)
class VectorReason:
    """A flag, the clauses of the contract (`4` is its section 4), and the effect of an implementation error."""

    flag: str
    clauses: tuple[str, ...]
    effect: str


Test = Callable[[Inputs, Decision], bool]
_NO_SECTION = Section()


def _only(code: ViolationCode, test: Test = lambda _inputs, _decision: True) -> Test:
    """Return a test that passes where this is the only violation and `test` passes."""
    return lambda inputs, decision: (
        [violation.code for violation in decision.violations] == [code] and test(inputs, decision)
    )


def _section(inputs: Inputs) -> Section:
    return inputs.section or _NO_SECTION


def _zero_autotp(inputs: Inputs, _: Decision) -> bool:
    return _section(inputs).autotp_size == 0


def _alias(inputs: Inputs, _: Decision) -> bool:
    return _section(inputs).tp_size is not None


def _precision(inputs: Inputs, _: Decision) -> bool:
    return inputs.precision is not None


def _mesh(inputs: Inputs, _: Decision) -> bool:
    return inputs.mesh is not None


def _mpu(inputs: Inputs, _: Decision) -> bool:
    return inputs.mpu is not None


def _zero(inputs: Inputs, _: Decision) -> bool:
    return 0 in (_section(inputs).tp_size, inputs.call and inputs.call.tp_size)


def _empty(inputs: Inputs, _: Decision) -> bool:
    section = _section(inputs)
    return (section.dtype, section.tp_group) == (None, None)


def _one_group(inputs: Inputs, _: Decision) -> bool:
    return bool(inputs.call and inputs.mpu and inputs.call.tp_group == inputs.mpu.tp_group)


def _dead_fields(inputs: Inputs, decision: Decision) -> bool:
    return decision.section_disabled and not _empty(inputs, decision)


def _succeeds(test: Test) -> Test:
    return lambda inputs, decision: decision.outcome is not Outcome.ERROR and test(inputs, decision)


def _size_from(source: Source) -> Test:
    return _succeeds(lambda inputs, decision: decision.tp_size.source is source and inputs.section is not None)


def _dtype_from(source: Source) -> Test:
    return _succeeds(lambda inputs, decision: decision.dtype.source is source and inputs.section is not None)


def _group_from(source: Source) -> Test:
    return _succeeds(lambda _inputs, decision: decision.tp_group.source is source)


def _is_no_autotp(test: Test) -> Test:
    return lambda inputs, decision: decision.outcome is Outcome.NO_AUTOTP and test(inputs, decision)


_C = ViolationCode
_NOT_FILLED = "the gap is filled from elsewhere, or not at all, and the model is cut into parts nobody asked for"

REASONS: tuple[tuple[VectorReason, Test], ...] = (
    (
        VectorReason(
            "SEVERAL_VIOLATIONS",
            ("4",),
            "only the first problem is told; the user fixes it, starts the job again, and meets the next",
        ),
        lambda _inputs, decision: len(decision.violations) > 1,
    ),
    # --- one violation ---
    (
        VectorReason(
            "NOTHING_BUT_A_DISABLED_SECTION",
            ("P7", "D2"),
            "a switched-off section is taken for a wish to shard, or for a wish not to, and training runs unsharded",
        ),
        _only(_C.NO_TP_INTENT, lambda _inputs, decision: decision.section_disabled),
    ),
    (
        VectorReason(
            "NOTHING_GIVEN",
            ("P7",),
            "every rank trains a whole model of its own and nobody is told that nothing was sharded",
        ),
        _only(_C.NO_TP_INTENT),
    ),
    (
        VectorReason(
            "MESH_IS_NO_DIRECT_SOURCE",
            ("P6", "D4"),
            "a mesh serves as the group of a call without a section, though only a tp_group or an mpu may",
        ),
        _only(_C.NO_GROUP_SOURCE, _mesh),
    ),
    (
        VectorReason(
            "CALL_WITHOUT_GROUP",
            ("P6", "D4"),
            "a group is created, or the whole world taken for it, where nobody said which ranks shard",
        ),
        _only(_C.NO_GROUP_SOURCE),
    ),
    (
        VectorReason(
            "GROUP_AND_MPU_IDENTICAL",
            ("P4",),
            "the call's group beside an mpu is let pass because the two groups happen to be the same",
        ),
        _only(_C.GROUP_AND_MPU, _one_group),
    ),
    (
        VectorReason(
            "GROUP_AND_MPU",
            ("P4",),
            "one of two groups is used in silence: gradients are averaged over ranks that hold other shards",
        ),
        _only(_C.GROUP_AND_MPU),
    ),
    (
        VectorReason(
            "SECTION_EMPTY",
            ("D1", "4"),
            "an empty section counts as none, and the job starts without tensor parallelism",
        ),
        _only(_C.SIZE_MISSING, _empty),
    ),
    (
        VectorReason(
            "SECTION_WITHOUT_SIZE",
            ("D1", "4"),
            "a size is made up, from a default, a group or the world, for a section that names none",
        ),
        _only(_C.SIZE_MISSING),
    ),
    (
        VectorReason(
            "SIZE_INVALID_ZERO",
            ("D2", "4"),
            "a zero that is not autotp_size is taken for `disabled`, or divided by",
        ),
        _only(_C.SIZE_INVALID, _zero),
    ),
    (
        VectorReason(
            "SIZE_INVALID_NEGATIVE",
            ("D7", "4"),
            "a negative size passes, since it divides the world too, and breaks or hangs much later",
        ),
        _only(_C.SIZE_INVALID),
    ),
    (
        VectorReason(
            "SIZE_MISMATCH_ZERO",
            ("P3", "D2"),
            "autotp_size 0 beside another size is taken for `disabled`, and the size that was asked for is ignored",
        ),
        _only(_C.SIZE_MISMATCH, _zero_autotp),
    ),
    (
        VectorReason(
            "SIZE_MISMATCH_ALIAS",
            ("P3", "D5"),
            "tp.tp_size is a setting that nothing reads: another size than the written one is used in silence",
        ),
        _only(_C.SIZE_MISMATCH, _alias),
    ),
    (
        VectorReason(
            "SIZE_MISMATCH",
            ("P3", "P1"),
            "the call and the config disagree and one of the two wins in silence",
        ),
        _only(_C.SIZE_MISMATCH),
    ),
    (
        VectorReason(
            "DTYPE_MISMATCH_PRECISION",
            ("P3", "D6"),
            "bf16.enabled or fp16.enabled is not held against the other dtypes: weights train in a type nobody chose",
        ),
        _only(_C.DTYPE_MISMATCH, _precision),
    ),
    (
        VectorReason(
            "DTYPE_MISMATCH",
            ("P3",),
            "the call and the section disagree on the dtype and one of the two wins in silence",
        ),
        _only(_C.DTYPE_MISMATCH),
    ),
    (
        VectorReason(
            "GROUP_IDENTITY_MISMATCH_MESH",
            ("P3", "P5"),
            "the mesh's group is forgotten beside another one, and the ranks that shard are not those of the mesh",
        ),
        _only(_C.GROUP_IDENTITY_MISMATCH, _mesh),
    ),
    (
        VectorReason(
            "GROUP_IDENTITY_MISMATCH_MPU",
            ("P3", "P5"),
            "the mpu's group and another one differ: shards and gradient averages go over different ranks",
        ),
        _only(_C.GROUP_IDENTITY_MISMATCH, _mpu),
    ),
    (
        VectorReason(
            "GROUP_IDENTITY_MISMATCH",
            ("P3",),
            "two group objects are compared by size or ranks, and one of them is used in silence",
        ),
        _only(_C.GROUP_IDENTITY_MISMATCH),
    ),
    (
        VectorReason(
            "GROUP_SIZE_MISMATCH_CONFIG",
            ("P3", "P1"),
            "the section's size and a group differ: parameters are cut into more or fewer parts than there are ranks",
        ),
        _only(_C.GROUP_SIZE_MISMATCH, lambda inputs, _decision: inputs.section is not None),
    ),
    (
        VectorReason(
            "GROUP_SIZE_MISMATCH",
            ("P3",),
            "the call's size and its group differ: parameters are cut into more or fewer parts than there are ranks",
        ),
        _only(_C.GROUP_SIZE_MISMATCH),
    ),
    (
        VectorReason(
            "SIZE_NOT_DIVIDING_WORLD",
            ("D4", "4"),
            "groups are created that do not tile the world: some ranks are left out and wait for ever",
        ),
        _only(_C.SIZE_NOT_DIVIDING_WORLD),
    ),
    # --- successes ---
    (
        VectorReason(
            "DISABLED_SECTION_IGNORED",
            ("D2", "P7"),
            "a field of a section that is switched off is read all the same",
        ),
        _is_no_autotp(_dead_fields),
    ),
    (
        VectorReason("DISABLED_SECTION", ("D2", "P7"), "autotp_size 0 is taken for a size, and AutoTP starts or fails"),
        _is_no_autotp(lambda _inputs, decision: decision.section_disabled),
    ),
    (
        VectorReason(
            "MPU_ALONE", ("P7",), "an mpu that serves another kind of parallelism starts AutoTP, or is an error"
        ),
        _is_no_autotp(lambda _inputs, _decision: True),
    ),
    (
        VectorReason("SIZE_FROM_ALIAS", ("D5",), "tp.tp_size is a setting that silently enables nothing"),
        _size_from(Source.CONFIG_TP_SIZE),
    ),
    (VectorReason("SIZE_FILLED_FROM_CALL", ("P2",), _NOT_FILLED), _size_from(Source.CALL_TP_SIZE)),
    (
        VectorReason("DTYPE_UNSET", ("D6",), "a dtype that nobody gave becomes fp32, and the model is converted"),
        _dtype_from(Source.UNSET),
    ),
    (
        VectorReason(
            "DTYPE_FROM_PRECISION", ("D6", "P2"), "the precision is overlooked, and the model keeps another dtype"
        ),
        _dtype_from(Source.PRECISION),
    ),
    (
        VectorReason("DTYPE_FILLED_FROM_CALL", ("P2",), "a dtype that only the call gives is dropped beside a section"),
        _dtype_from(Source.CALL_DTYPE),
    ),
    (
        VectorReason(
            "GROUP_CREATED", ("P5", "D4"), "a section without a group source is an error, or takes the whole world"
        ),
        _group_from(Source.CREATED),
    ),
    (
        VectorReason("GROUP_FROM_MESH", ("P5", "D4"), "the mesh's group is ignored and another one created"),
        _group_from(Source.MESH_TP_GROUP),
    ),
    (
        VectorReason("GROUP_FROM_CONFIG", ("P5", "D4"), "the section's own group is ignored and another one created"),
        _group_from(Source.CONFIG_TP_GROUP),
    ),
    (
        VectorReason(
            "GROUP_FROM_MPU", ("P5",), "the mpu's group is ignored, and other ranks shard than those of the mpu"
        ),
        _group_from(Source.MPU_TP_GROUP),
    ),
    (
        VectorReason(
            "GROUP_FROM_CALL", ("P4",), "the call's own group is ignored, and other ranks shard than asked for"
        ),
        _group_from(Source.CALL_TP_GROUP),
    ),
)


def reason(inputs: Inputs, decision: Decision) -> VectorReason:
    """Return the reason of a vector with this input and decision. Raises LookupError where no reason fits."""
    for why, fits in REASONS:
        if fits(inputs, decision):
            return why
    raise LookupError(f"no reason fits {inputs}")
