"""The kit calls every miniature what it is."""

import pytest
from tpinit.conformance import runner
from tpinit.conformance.adapters import opener
from tpinit.conformance.miniatures import MINIATURES
from tpinit.conformance.protocol import KitError, Result, Skipped
from tpinit.conformance.report import CaseStatus, exit_code, footer
from tpinit.conformance.runner import RunOptions, check_vectors, conform
from tpinit.conformance.vectors import Vector, load

SMOKE = load(smoke=True)


def report_on(name, vectors=SMOKE, **settings):
    miniature = MINIATURES[name]
    return conform(opener(miniature.spelled), vectors, RunOptions(spelled=miniature.spelled, **settings))


@pytest.mark.parametrize("name", MINIATURES)
def test_each_is_called_what_it_is(name):
    # A time that no right answer needs and that makes what hangs quick to tell. Worlds take their time to start.
    hangs, world = CaseStatus.TIMED_OUT in MINIATURES[name].verdicts, MINIATURES[name].spelled.startswith("ranks")
    vectors = [vector for vector in SMOKE if vector.row in (1, 3, 6)] if world else SMOKE
    report = report_on(name, vectors, timeout=1.0 if hangs else 30.0, passes=1 if hangs or world else 2)
    assert {case.verdict for case in report.cases} == MINIATURES[name].verdicts, report.broken
    assert exit_code(report) == MINIATURES[name].exit_code


def cases(report, verdict):
    return {case.id for case in report.cases if case.verdict is verdict}


def where(holds):
    return {vector.id for vector in SMOKE if holds(vector)}


def call_meets_mpu(vector):
    return vector.input["call"] is not None and vector.input["mpu"] is not None


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("crashes", CaseStatus.CRASHED),
        ("hangs", CaseStatus.TIMED_OUT),
        ("answers garbage", CaseStatus.GARBAGE),
        ("hangs on one rank", CaseStatus.TIMED_OUT),
        ("crashes on one rank", CaseStatus.CRASHED),
    ],
)
def test_exactly_the_cases_that_it_fails_are_blamed(name, verdict):
    asked = [vector for vector in SMOKE if vector.row in (4, 6)]
    report = report_on(name, asked, timeout=1.0 if verdict is CaseStatus.TIMED_OUT else 30.0, passes=1)
    blamed = where(lambda vector: vector.row in (4, 6) and call_meets_mpu(vector))
    assert cases(report, verdict) == blamed != set()
    assert cases(report, CaseStatus.AGREED) == {vector.id for vector in asked} - blamed


def test_the_rank_that_hangs_or_crashes_is_named():
    asked = [vector for vector in SMOKE if vector.row == 6]
    (late,) = report_on("hangs on one rank", asked, timeout=1.0, passes=1).cases
    assert "no answer in 1 s from rank" in late.answer["timed_out"]
    assert "1" in late.answer["timed_out"].partition("rank")[2]
    (dead,) = report_on("crashes on one rank", asked, passes=1).cases
    last = asked[0].input["world_size"] - 1
    assert dead.answer == {"crashed": f"rank {last}: exit code 7"}


def test_ranks_that_disagree_are_shown_side_by_side():
    asked = [vector for vector in SMOKE if vector.row in (1, 3, 6)]
    report = report_on("ranks disagree", asked, passes=1)
    shown = [case for case in report.cases if case.verdict is CaseStatus.DISAGREED]
    assert {case.id for case in shown} == where(lambda vector: vector.row == 3)
    assert all([difference.field for difference in case.differences] == ["ranks_disagree"] for case in shown)
    assert all(
        case.differences[0].given["1"] == {"result": {"outcome": "error", "violations": ["SIZE_INVALID"]}}
        for case in shown
    )


def test_a_changed_input_is_told_as_such():
    report = report_on("changes its input")
    assert cases(report, CaseStatus.DISAGREED) == where(lambda vector: vector.input["section"] is not None)
    assert {d.field for case in report.cases for d in case.differences} == {"input_changed"}


def test_state_that_leaks_shows_in_the_reverse_order_only_and_not_between_processes():
    assert cases(report_on("leaks state", passes=1), CaseStatus.AGREED) == where(lambda _: True)
    unstable = cases(report_on("leaks state"), CaseStatus.UNSTABLE)
    assert unstable
    assert unstable <= where(lambda vector: vector.input["call"] is None)
    miniature = MINIATURES["leaks state"]
    few = [vector for vector in SMOKE if vector.row in (4, 5, 10)]
    fresh = conform(opener(miniature.spelled, fresh=True), few)
    assert {case.verdict for case in fresh.cases} == {CaseStatus.AGREED}


def test_a_secret_departure_is_wrong_and_a_declared_one_is_listed():
    secret, said = report_on("lies about its dialect"), report_on("permissive and says so")
    departed = cases(secret, CaseStatus.DISAGREED)
    assert departed == cases(said, CaseStatus.PERMITTED)
    assert departed == where(lambda v: v.expected["violations"] in (["NO_TP_INTENT"], ["NO_GROUP_SOURCE"]))
    assert footer(said)["choices"] == {"row1-plain-data-parallel": 1, "row5-creates-group": 1}
    refused = report_on("permissive and says so", choices=False)
    assert cases(refused, CaseStatus.DISAGREED) == departed


def test_who_answers_a_part_is_right_in_that_part_only():
    report = report_on("answers a part")
    fields = footer(report)["fields"]
    assert fields["outcome"] == {"asked": len(SMOKE), "answered": len(SMOKE), "agreed": len(SMOKE)}
    assert fields["tp_size.value"] == {"asked": len(SMOKE), "answered": 0, "agreed": 0}
    strict = report_on("answers a part", strict=True)
    assert {case.verdict for case in strict.cases} == {CaseStatus.DISAGREED}
    assert exit_code(strict) == 1


# --- the kit checks itself before it judges anybody ----------------------------------------------------


def bent(vector, **changes):
    return Vector(**{**{name: getattr(vector, name) for name in Vector.__slots__}, **changes})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda v: {"expected": {**v.expected, "outcome": "no_autotp"}}, "its expected answer is not the contract's"),
        (lambda v: {"expected": {**v.expected, "row": 13}}, "malformed"),
        (lambda v: {"input": {**v.input, "world_size": 0}}, "malformed"),
    ],
)
def test_a_wrong_vector_is_the_kit_s_fault(change, word):
    check_vectors(SMOKE)
    with pytest.raises(KitError, match=f"{SMOKE[0].id}.*{word}"):
        conform(opener("reference"), [bent(SMOKE[0], **change(SMOKE[0])), *SMOKE[1:]])
    with pytest.raises(KitError, match="two vectors have the id"):
        check_vectors([SMOKE[0], SMOKE[0]])


def test_oracles_that_disagree_are_the_kit_s_fault(monkeypatch):
    monkeypatch.setattr(runner, "oracle", lambda inputs: None)
    with pytest.raises(KitError, match="oracle"):
        check_vectors(SMOKE)


def test_every_vector_of_the_kit_agrees_with_the_reference():
    report = conform(opener("reference"), load())
    assert {case.verdict for case in report.cases} == {CaseStatus.AGREED}
    assert report.name == "reference"


def test_a_bool_is_not_a_number_and_skipping_is_not_agreeing():
    vector = next(v for v in SMOKE if v.expected["tp_size"]["value"] == 2)
    assert runner.judge(vector, Result(vector.expected)).verdict is CaseStatus.AGREED
    assert runner.judge(vector, Skipped("no")).verdict is CaseStatus.SKIPPED
    wrong = Result({**vector.expected, "section_disabled": 0})
    assert runner.judge(vector, wrong).verdict is CaseStatus.DISAGREED
