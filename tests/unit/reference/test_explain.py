"""A decision in words and as JSON: the row and why, each field with its source, every violation with its fix."""

from __future__ import annotations

import itertools
import json

import pytest
from tpinit.reference.explain import describe, explain, to_json
from tpinit.reference.resolver import resolve
from tpinit.spec.vocabulary import (
    Call,
    Decision,
    DType,
    Given,
    Group,
    Inputs,
    Mpu,
    Outcome,
    Section,
    Source,
    Violation,
    ViolationCode,
)

RANKS = Group(0, 2, (0, 2))
OTHER = Group(1, 2, (1, 3))
OPAQUE = Group(2, 4, object())
CALL = Call(2, DType.BF16)
OWN = Call(2, DType.BF16, RANKS)
MPU = Mpu(RANKS, OTHER)

# One input for every violation alone, the way a user would meet it, and words that must be said about it.
VIOLATIONS = {
    ViolationCode.NO_TP_INTENT: (Inputs(4), ["no tp_model_init call", "autotp_size"]),
    ViolationCode.NO_GROUP_SOURCE: (Inputs(4, CALL), ["tp_size=2 in tp_model_init", "mpu", "section"]),
    ViolationCode.GROUP_AND_MPU: (Inputs(4, OWN, mpu=Mpu(RANKS)), ["tp_group in tp_model_init", "ranks 0, 2", "P4"]),
    ViolationCode.SIZE_MISSING: (Inputs(4, section=Section()), ["tensor_parallel.autotp_size"]),
    ViolationCode.SIZE_INVALID: (
        Inputs(4, section=Section(autotp_size=-2)),
        ["tensor_parallel.autotp_size = -2 in the config", "at least 1"],
    ),
    ViolationCode.SIZE_MISMATCH: (
        Inputs(4, CALL, Section(autotp_size=4)),
        ["tensor_parallel.autotp_size = 4 in the config", "tp_size=2 in tp_model_init"],
    ),
    ViolationCode.DTYPE_MISMATCH: (
        Inputs(4, CALL, Section(), DType.FP16),
        ["fp16.enabled = true in the config", "dtype=bf16 in tp_model_init"],
    ),
    ViolationCode.GROUP_IDENTITY_MISMATCH: (
        Inputs(4, CALL, Section(tp_group=OTHER), mpu=Mpu(RANKS)),
        ["the mpu passed to initialize (the group of ranks 0, 2)", "tensor_parallel.tp.tp_group", "ranks 1, 3"],
    ),
    ViolationCode.GROUP_SIZE_MISMATCH: (
        Inputs(4, CALL, mpu=Mpu(OPAQUE)),
        ["tp_size=2 in tp_model_init", "a group of 4 ranks"],
    ),
    ViolationCode.SIZE_NOT_DIVIDING_WORLD: (
        Inputs(6, section=Section(tp_size=4)),
        ["tensor_parallel.tp.tp_size = 4 in the config", "a world of 6 ranks", "(1, 2, 3, 6)"],
    ),
}


def test_there_is_an_example_of_every_violation():
    assert list(VIOLATIONS) == list(ViolationCode)


@pytest.mark.parametrize("code", ViolationCode)
def test_a_violation_is_described_in_users_words_with_a_fix(code):
    inputs, words = VIOLATIONS[code]
    decision = resolve(inputs)
    (violation,) = decision.violations
    assert violation.code is code
    message, fix = describe(violation)
    for word in words:
        assert word in message + fix
    assert message in explain(decision)
    assert f"fix: {fix}" in explain(decision)
    assert code.value in explain(decision)
    for given in violation.given:
        if not isinstance(given.value, Group):
            value = given.value.value if isinstance(given.value, DType) else given.value
            assert str(value) in message


@pytest.mark.parametrize("code", ViolationCode)
def test_a_violation_without_evidence_has_words_too(code):
    message, fix = describe(Violation(code))
    assert message
    assert fix


def test_a_zero_that_contradicts_is_explained():
    message, _ = describe(resolve(Inputs(4, CALL, Section(autotp_size=0))).violations[0])
    assert "disabled" in message
    assert "disabled" not in describe(resolve(VIOLATIONS[ViolationCode.SIZE_MISMATCH][0]).violations[0])[0]


ROWS = {
    1: Inputs(4),
    2: Inputs(4, mpu=MPU, precision=DType.BF16),
    3: Inputs(4, section=Section(autotp_size=2)),
    4: Inputs(4, section=Section(tp_size=2), mpu=MPU, precision=DType.FP16),
    5: Inputs(4, CALL),
    6: Inputs(4, CALL, mpu=MPU),
    7: Inputs(4, CALL, Section()),
    8: Inputs(4, CALL, Section(autotp_size=2, dtype=DType.BF16), mpu=MPU),
    9: Inputs(4, OWN),
    10: Inputs(4, OWN, mpu=MPU),
    11: Inputs(4, OWN, Section()),
    12: Inputs(4, OWN, Section(), mpu=MPU),
}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_says_its_four_facts(row):
    inputs = ROWS[row]
    words = explain(resolve(inputs))
    assert words.startswith(f"Row {row} of 12: ")
    assert ("tp_model_init was not called" in words) is (inputs.call is None)
    assert ("with a tp_group" in words) is (inputs.call is not None and inputs.call.tp_group is not None)
    assert ("the config has an enabled tensor_parallel section" in words) is (inputs.section is not None)
    assert ("no mpu was passed" in words) is (inputs.mpu is None)
    assert len(words.splitlines()) > 1


@pytest.mark.parametrize(
    ("row", "lines"),
    [
        (2, ["No AutoTP", "P7", "dtype = bf16, from bf16.enabled in the config"]),
        (
            3,
            ["P1", "tp_size = 2, from tensor_parallel.autotp_size", "dtype: unset", "tp_group: created", "2 x 2 ranks"],
        ),
        (4, ["tp_size = 2, from tensor_parallel.tp.tp_size", "dtype = fp16, from fp16.enabled", "ranks 1, 3"]),
        (6, ["P6", "the mpu is a direct group source", "tp_group = the group of ranks 0, 2, from the mpu passed"]),
        (7, ["P1", "P2", "tp_size = 2, from tp_size in tp_model_init", "created"]),
        (9, ["its own tp_group is a direct group source", "from tp_group in tp_model_init"]),
        (11, ["P2", "dtype = bf16, from dtype in tp_model_init", "ranks 0, 2"]),
    ],
)
def test_each_field_has_its_source(row, lines):
    words = explain(resolve(ROWS[row]))
    for line in lines:
        assert line in words


def test_a_section_switched_off_is_said():
    off = explain(resolve(Inputs(4, section=Section(autotp_size=0), mpu=MPU)))
    assert "D2" in off
    assert "switched off" in off
    assert "D2" in explain(resolve(Inputs(4, section=Section(autotp_size=0))))
    assert "switched off" not in explain(resolve(ROWS[2]))


def test_all_violations_are_listed():
    decision = resolve(Inputs(5, OWN, Section(4, 3, DType.FP16, OTHER), DType.FP16, Mpu(OPAQUE), OPAQUE))
    assert len(decision.violations) == 5
    words = explain(decision)
    assert "5 violations" in words
    assert words.count("    fix: ") == 5


def test_groups_of_many_ranks_are_shortened_and_others_counted():
    many = explain(resolve(Inputs(512, Call(256, DType.BF16, Group(0, 256, tuple(range(256)))))))
    assert "0, 1, 2" in many
    assert "(256 ranks)" in many
    assert len(many) < 600
    assert "a group of 1 rank," in explain(resolve(Inputs(4, Call(1, DType.BF16, Group(0, 1, object())))))


def test_every_decision_of_a_small_domain_has_words_and_json():
    groups = (None, RANKS, OPAQUE)
    calls = (None, CALL, OWN, Call(0, DType.FP16))
    sections = (None, Section(), Section(0), Section(3, 2, DType.FP32, RANKS), Section(tp_size=-1))
    mpus = (None, Mpu(RANKS), Mpu(OPAQUE, OTHER))
    seen = set()
    for call, section, mpu, mesh, dtype in itertools.product(calls, sections, mpus, groups, (None, DType.BF16)):
        decision = resolve(Inputs(4, call, section, dtype, mpu, mesh))
        words, plain = explain(decision), to_json(decision)
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert plain["row"] == decision.row
        assert all(violation.code.value in words for violation in decision.violations)
        seen.add((decision.row, decision.outcome))
    assert len(seen) >= 16


# --- JSON ------------------------------------------------------------------------------------------


def test_json_of_a_success():
    plain = to_json(resolve(ROWS[8]))
    assert plain == {
        "row": 8,
        "facts": {"TPI": True, "TPG": False, "CFG": True, "MPU": True},
        "outcome": "init_from_config",
        "tp_size": {"value": 2, "source": "config.autotp_size"},
        "dtype": {"value": "bf16", "source": "config.dtype"},
        "tp_group": {"value": {"size": 2, "ranks": [0, 2], "identity": 0}, "source": "mpu.tp_group"},
        "dp_group": {"size": 2, "ranks": [1, 3], "identity": 1},
        "world_size": 4,
        "section_disabled": False,
        "violations": [],
    }
    assert type(plain["dtype"]["value"]) is str


def test_json_of_what_is_created_unset_or_missing():
    created = to_json(resolve(ROWS[3]))
    assert created["tp_group"] == {"value": None, "source": "created"}
    assert created["dtype"] == {"value": None, "source": "unset"}
    error = to_json(resolve(ROWS[5]))
    assert error["tp_size"] == {"value": None, "source": None}
    assert error["outcome"] == "error"
    assert to_json(resolve(Inputs(4, Call(4, DType.BF16, OPAQUE))))["tp_group"]["value"]["ranks"] is None


def test_json_of_violations_has_code_message_and_fix():
    decision = resolve(VIOLATIONS[ViolationCode.SIZE_MISMATCH][0])
    (violation,) = to_json(decision)["violations"]
    message, fix = describe(decision.violations[0])
    assert (violation["code"], violation["message"], violation["fix"]) == ("SIZE_MISMATCH", message, fix)
    assert violation["given"][0] == {"source": "config.autotp_size", "value": 4}


def test_integers_of_any_length_are_explained_and_serialised():
    huge = 10**5000
    decision = resolve(Inputs(huge, Call(huge - 1, DType.BF16), Section(autotp_size=huge)))
    assert "16610 bits" in explain(decision)
    json.dumps(to_json(decision))
    made = Decision(3, Outcome.INIT_FROM_CONFIG, violations=())
    assert explain(made)
    assert describe(Violation(ViolationCode.SIZE_INVALID, (Given(Source.CALL_TP_SIZE, -huge),)))
