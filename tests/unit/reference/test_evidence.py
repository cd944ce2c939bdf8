"""Which given values each violation is about: exactly those, in order. No theorem speaks of evidence."""

import pytest
from tpinit.reference.resolver import resolve
from tpinit.spec.vocabulary import Call, DType, Given, Group, Inputs, Mpu, Section, Source, ViolationCode

TWO, OTHER, THREE = Group(0, 2), Group(1, 2), Group(2, 3)
BF16, FP16, FP32 = DType.BF16, DType.FP16, DType.FP32
CALL = Call(2, BF16)


def evidence(code, **given):
    (found,) = [violation for violation in resolve(Inputs(**given)).violations if violation.code is code]
    return found.given


@pytest.mark.parametrize(
    ("code", "given", "about"),
    [
        ("NO_TP_INTENT", {"world_size": 4}, []),
        ("NO_GROUP_SOURCE", {"world_size": 4, "call": CALL}, [(Source.CALL_TP_SIZE, 2)]),
        (
            "GROUP_AND_MPU",
            {"world_size": 4, "call": Call(2, BF16, TWO), "mpu": Mpu(OTHER), "section": Section(2, tp_group=THREE)},
            [(Source.CALL_TP_GROUP, TWO), (Source.MPU_TP_GROUP, OTHER)],
        ),
        ("SIZE_MISSING", {"world_size": 4, "section": Section(dtype=BF16), "mesh": TWO}, []),
        (
            "SIZE_INVALID",
            {"world_size": 4, "section": Section(0, -1), "call": Call(0, BF16)},
            [(Source.CONFIG_TP_SIZE, -1), (Source.CALL_TP_SIZE, 0)],
        ),
        (
            "SIZE_MISMATCH",
            {"world_size": 4, "section": Section(4, 2), "call": CALL},
            [(Source.CONFIG_AUTOTP_SIZE, 4), (Source.CONFIG_TP_SIZE, 2), (Source.CALL_TP_SIZE, 2)],
        ),
        (
            "DTYPE_MISMATCH",
            {"world_size": 4, "section": Section(2, dtype=FP32), "precision": FP16, "call": CALL},
            [(Source.CONFIG_DTYPE, FP32), (Source.PRECISION, FP16), (Source.CALL_DTYPE, BF16)],
        ),
        (
            "GROUP_IDENTITY_MISMATCH",
            {"world_size": 4, "section": Section(2, tp_group=TWO), "mpu": Mpu(TWO), "mesh": OTHER},
            [(Source.MPU_TP_GROUP, TWO), (Source.MESH_TP_GROUP, OTHER)],
        ),
        (
            "GROUP_SIZE_MISMATCH",
            {"world_size": 4, "section": Section(2, 4, tp_group=THREE), "mpu": Mpu(TWO), "mesh": THREE},
            [(Source.CONFIG_AUTOTP_SIZE, 2), (Source.CONFIG_TP_GROUP, THREE), (Source.MESH_TP_GROUP, THREE)],
        ),
        (
            "SIZE_NOT_DIVIDING_WORLD",
            {"world_size": 4, "section": Section(3), "call": CALL},
            [(Source.CONFIG_AUTOTP_SIZE, 3), (Source.WORLD_SIZE, 4)],
        ),
    ],
)
def test_a_violation_is_about_exactly_these(code, given, about):
    assert evidence(ViolationCode(code), **given) == tuple(Given(source, value) for source, value in about)


def test_what_a_decision_carries_is_its_inputs():
    section = Section(2, carried={"kernel_inject": True})
    decision = resolve(Inputs(4, section=section, mpu=Mpu(TWO, THREE)))
    assert (decision.world_size, decision.dp_group, decision.carried) == (4, THREE, {"kernel_inject": True})
    disabled = resolve(Inputs(4, section=Section(0, carried={"kernel_inject": True})))
    assert (disabled.section_disabled, disabled.dp_group, dict(disabled.carried)) == (True, None, {})
