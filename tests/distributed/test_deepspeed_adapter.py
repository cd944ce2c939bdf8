"""The kit's adapter of real ranks: what it sees of our own runtime, what it must refuse, and real DeepSpeed."""

import copy
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from studies.deepspeed.campaign import run
from studies.deepspeed.catalogue import entries, expected_of, job_of_entry, rows
from studies.deepspeed.findings import DEEPSPEED, sort
from studies.deepspeed.judge import Aspect, DepartureKind, judge
from tpinit.conformance.adapters.deepspeed import PYTHON_VARIABLE, adapter, python_of
from tpinit.conformance.adapters.deepspeed.adapter import RankServerAdapter, answer_of_observation, run_job
from tpinit.conformance.adapters.deepspeed.host import RankServer, ServerError
from tpinit.conformance.adapters.deepspeed.jobs import blocks, job_of, orthogonal
from tpinit.conformance.adapters.deepspeed.observation import StartStatus
from tpinit.conformance.protocol import Broken, Result, Skip, Skipped, TimedOut
from tpinit.conformance.vectors import load

REPRODUCTIONS = Path(__file__).parents[2] / "docs/reproductions"


@pytest.fixture(scope="module")
def server():
    server = RankServer("tpinit", sys.executable)
    server.start()
    yield server
    home = server._home
    server.stop()
    assert not Path(home).exists()


def entry(name):
    return next(one for one in entries() if one.id == name)


@pytest.fixture(scope="module")
def strides(server):
    return run_job(server, job_of_entry(entry("row-04-strides"), 60))


def test_groups_numbers_and_dtypes_are_seen_as_they_are(strides):
    assert strides.ended is StartStatus.ENGINE
    assert strides.sharding == [[0, 2], [1, 3]]
    assert strides.averaging == [[0, 1], [2, 3]]
    assert strides.divisor == pytest.approx(2, abs=0.01)
    assert strides.checking == [[0, 2], [1, 3]]
    assert strides.slices == [0, 0, 1, 1]
    assert strides.dtypes == ["float32"]
    assert strides.training.off_by < 1e-4
    assert judge(expected_of(entry("row-04-strides")), strides) == []


def test_what_is_seen_is_refused_where_something_else_was_expected(strides):
    right = expected_of(entry("row-04-strides"))
    wrong = replace(right, tp_groups=blocks(4, 2), dp_groups=orthogonal(blocks(4, 2)))
    assert [one.aspect for one in judge(wrong, strides)] == [Aspect.SHARDING, Aspect.AVERAGING, Aspect.CHECK]
    assert [one.aspect for one in judge(replace(right, tp_size=4), strides)] == [Aspect.TP_SIZE]
    assert [one.aspect for one in judge(replace(right, dtype="bf16"), strides)] == [Aspect.DTYPE]
    error = expected_of(entry("row-05"))
    assert [(one.kind, one.aspect) for one in judge(error, strides)] == [(DepartureKind.ERROR, Aspect.OUTCOME)]
    off = replace(strides, training=replace(strides.training, off_by=0.5))
    assert [(one.kind, one.aspect) for one in judge(right, off)] == [(DepartureKind.WRONG_TRAINING, Aspect.NUMBERS)]
    assert [one.aspect for one in judge(right, replace(strides, changed={"x": "1"}))] == [Aspect.CONFIG]


def test_training_that_differs_from_the_unsharded_model_is_seen(server):
    clipped = replace(entry("row-03"), more={"gradient_clipping": 0.01})
    seen = run_job(server, job_of_entry(clipped, 60))
    assert seen.training.wrong
    last = judge(expected_of(clipped), seen)[-1]
    assert (last.kind, last.aspect) == (DepartureKind.WRONG_TRAINING, Aspect.NUMBERS)


def test_data_that_the_first_check_refuses_is_seen(server):
    job = job_of_entry(entry("row-03"), 60)
    for step in job["steps"]:
        if step.get("what") == "numbers":
            step["data"] = [0, 1, 0, 1]
    assert run_job(server, job).training.raised["type"] == "AgreementError"


def test_a_hang_ends_its_own_case_only(server):
    job = job_of_entry(entry("row-03"), 0.05)
    seen = run_job(server, job)
    assert seen.ended is StartStatus.HANG
    assert seen.hung == [0, 1, 2, 3]
    assert [one.kind for one in judge(expected_of(entry("row-03")), seen)] == [DepartureKind.HANG]
    assert isinstance(answer_of_observation({}, {}, seen), TimedOut)
    assert run_job(server, job_of_entry(entry("row-03"), 60)).ended is StartStatus.ENGINE


def test_errors_carry_their_codes(server):
    for one in rows():
        expected = expected_of(one)
        if expected.codes:
            seen = run_job(server, job_of_entry(one, 60))
            assert seen.codes == expected.codes
            assert judge(expected, seen) == []
            assert judge(replace(expected, codes=("SIZE_MISSING",)), seen)


def test_no_departure_of_our_own_runtime_in_the_smoke_part():
    campaign = run(RankServerAdapter("tpinit", lambda: sys.executable, meshes=True), smoke=True)
    assert [(case.id, case.departures) for case in campaign.cases if case.departures] == []
    assert sum(case.answered for case in campaign.cases) > 35
    assert {case.verdict.value for case in campaign.report.cases} <= {"agreed", "skipped"}
    assert sum(case.answered for case in campaign.report.cases) >= 15


def test_the_adapter_answers_skips_and_reports_hangs():
    ours = RankServerAdapter("tpinit", lambda: sys.executable, meshes=False)
    vectors = load(smoke=True)
    good = next(v for v in vectors if v.row == 3 and v.expected["outcome"] == "init_from_config")
    try:
        who = ours.start()
        assert (who.name, who.isolated) == ("tpinit", True)
        assert ours.dialect("documented")
        assert not ours.dialect("other")
        case = copy.deepcopy(dict(good.input))
        answer = ours.run(case, 60)
        assert isinstance(answer, Result)
        assert answer.answer["outcome"] == "init_from_config"
        assert case == good.input
        assert isinstance(ours.run({**case, "world_size": 8}, 60), Skipped)
        assert isinstance(ours.run({**case, "groups": {"g1": 3}}, 60), Skipped)
    finally:
        ours.stop()
        ours.stop()


def test_jobs_say_what_they_can_not_ask():
    vector = next(v for v in load() if v.input["mesh"] is not None and v.input["world_size"] == 4)
    with pytest.raises(Skip, match="no tensor-parallel dimension"):
        job_of(vector.input, "x", 20, meshes=False)


def test_an_interpreter_that_is_none_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(Broken, match="make deepspeed-env"):
        python_of()
    lost = RankServer("nonsense", sys.executable)
    with pytest.raises(ServerError, match="KeyError"):
        lost.start()
    lost.stop()


def test_every_finding_has_a_script_and_every_script_a_finding():
    scripts = {path.name for path in REPRODUCTIONS.glob("*.py")} - {"tiny.py"}
    assert scripts == {finding.script for finding in DEEPSPEED}
    assert len({finding.slug for finding in DEEPSPEED}) == len(DEEPSPEED)


# --- real DeepSpeed -------------------------------------------------------------------------------------

needs_deepspeed = pytest.mark.skipif(
    not os.environ.get(PYTHON_VARIABLE), reason=f"{PYTHON_VARIABLE} names no Python with DeepSpeed (make deepspeed-env)"
)


@needs_deepspeed
@pytest.mark.timeout(900)  # one C++ build, on a busy machine
def test_deepspeed_departs_where_it_is_known_to_and_nowhere_else():
    shared = set(os.listdir("/dev/shm"))
    campaign = run(adapter(), smoke=True)
    found, left = sort(campaign.cases, DEEPSPEED)
    assert left == []
    slugs = {each.finding.slug for each in found}
    assert {"group-not-printable", "mpu-group-ignored", "nested-size-ignored", "record-outlives", "row-5"} <= slugs
    assert {"size-not-dividing", "section-dtype-refused", "batch", "second-model-mpu", "two-models-size"} <= slugs
    agreed = {case.id for case in campaign.cases if case.answered and not case.departures}
    assert {"row-03", "row-04-blocks", "row-10-blocks", "row-12-blocks"} <= agreed
    assert set(os.listdir("/dev/shm")) <= shared
