"""Tests run on a changed source: in a process and a tree of their own, with the right verdict for each ending."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tpinit.proofs.mutation.test_runner import (
    Coverage,
    SourceChange,
    Suite,
    check_original,
    record_coverage,
    run_forked,
    run_tests,
    temporary_bytecode,
    temporary_folder,
)

FILE = "src/mutdemo/numbers.py"
RIGHT = "def half(value):\n    if value < 0:\n        return 0\n    return value // 2\n"
TESTS = """
from mutdemo.numbers import half

def test_half_of_four():
    assert half(4) == 2

def test_half_of_less_than_nothing():
    assert half(-4) == 0

def test_of_another_matter():
    assert 1 + 1 == 2
"""


@pytest.fixture
def suite(tmp_path):
    package = tmp_path / "src/mutdemo"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / FILE).write_text(RIGHT, encoding="utf-8")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/conftest.py").write_text(f"import sys; sys.path.append({str(tmp_path / 'src')!r})", "utf-8")
    (tmp_path / "tests/test_half.py").write_text(TESTS, encoding="utf-8")
    with temporary_bytecode():
        yield Suite(tmp_path, ("tests/test_half.py",))


def changed(old, new):
    assert RIGHT.count(old) == 1
    return SourceChange(FILE, RIGHT.replace(old, new))


def names(*tests):
    return [f"tests/test_half.py::{test}" for test in tests]


ALL = names("test_half_of_four", "test_half_of_less_than_nothing", "test_of_another_matter")


def test_the_tests_that_reach_a_line_are_known(suite):
    coverage = record_coverage(suite, [FILE])
    assert set(coverage.seconds) == set(ALL)
    assert coverage.tests_reaching(FILE, [4]) == names("test_half_of_four")
    assert set(coverage.tests_reaching(FILE, [2])) == set(ALL[:2])
    assert set(coverage.tests_reaching(FILE, [])) == set(ALL)
    assert "mutdemo.numbers" not in coverage.seconds


def test_a_test_that_the_recorder_loses_may_reach_any_line(suite):
    deep = "\ndef test_deep():\n    def down():\n        half(4), down()\n    try:\n        down()\n"
    deep += "    except RecursionError:\n        assert half(-4) == 0\n"
    (suite.root / "tests/test_half.py").write_text(TESTS + deep, encoding="utf-8")
    coverage = record_coverage(suite, [FILE])
    assert set(coverage.tests_reaching(FILE, [3])) == set(names("test_half_of_less_than_nothing", "test_deep"))


def test_a_mutant_is_killed_by_the_test_that_fails(suite):
    ended = run_tests(suite, changed("// 2", "// 3"), ALL, 30)
    assert (ended.failed, ended.timed_out) == (ALL[0], False)
    assert "AssertionError" in ended.message or "assert" in ended.message


def test_only_the_given_tests_run_and_in_that_order(suite):
    assert run_tests(suite, changed("return 0", "return 1"), [ALL[0], ALL[2]], 30).failed == ""
    assert run_tests(suite, changed("return 0", "return 1"), list(reversed(ALL)), 30).failed == ALL[1]


def test_the_right_source_survives_and_the_tree_is_as_it_was(suite):
    before = sorted(path.name for path in suite.root.rglob("*"))
    assert run_tests(suite, SourceChange(FILE, RIGHT), ALL, 30).failed == ""
    assert run_tests(suite, changed("// 2", "// 3"), ALL, 30).failed
    assert sorted(path.name for path in suite.root.rglob("*")) == before
    assert (suite.root / FILE).read_text(encoding="utf-8") == RIGHT


def test_a_mutant_that_can_not_be_imported_is_killed(suite):
    assert run_tests(suite, changed("def half(value):", "raise OSError\ndef half(value):"), ALL, 30).failed.endswith(
        "on import"
    )


def test_a_mutant_that_never_ends_is_killed_by_time(suite):
    ended = run_tests(suite, changed("    return value // 2", "    while value: pass"), ALL, 1)
    assert (ended.failed, ended.timed_out) == ("a time-out", True)


def test_a_process_that_fails_by_itself_is_no_verdict():
    def broken():
        raise KeyError("the harness, not the mutant")

    with temporary_folder() as home, pytest.raises(RuntimeError, match="the harness, not the mutant"):
        run_forked(home, 5, broken)


def test_tests_that_fail_on_the_right_source_are_refused(suite):
    (suite.root / FILE).write_text(RIGHT.replace("// 2", "// 3"), encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"must pass on the original source.*test_half_of_four"):
        record_coverage(suite, [FILE])


def test_no_tests_at_all_are_refused(suite):
    (suite.root / "tests/test_half.py").write_text("", encoding="utf-8")
    with pytest.raises(RuntimeError, match="there are no tests"):
        record_coverage(suite, [FILE])


def test_a_way_of_judging_that_kills_the_right_source_is_refused(suite):
    coverage = record_coverage(suite, [FILE])
    check_original(suite, FILE, coverage)
    where = "import mutdemo.numbers\n\ndef test_where():\n    assert '/src/' in mutdemo.numbers.__file__\n"
    (suite.root / "tests/test_half.py").write_text(where, encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"the original .* is killed by .*test_where"):
        check_original(suite, FILE, Coverage({names("test_where")[0]: 0.0}, {}))


def test_tests_that_do_not_import_the_mutants_are_refused(suite):
    (suite.root / "tests/test_half.py").write_text("def test_nothing():\n    pass\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"do not import the mutants of src/mutdemo/numbers\.py"):
        check_original(suite, FILE, Coverage({names("test_nothing")[0]: 0.0}, {}))


def test_a_mutant_in_an_inner_package_is_imported(suite):
    inner = suite.root / "src/mutdemo/inner"
    inner.mkdir()
    (inner / "__init__.py").touch()
    (inner / "numbers.py").write_text(RIGHT, encoding="utf-8")
    tests = TESTS.replace("mutdemo.numbers", "mutdemo.inner.numbers")
    (suite.root / "tests/test_half.py").write_text(tests, encoding="utf-8")
    change = SourceChange("src/mutdemo/inner/numbers.py", RIGHT.replace("// 2", "// 3"))
    assert run_tests(suite, change, ALL, 30).failed == ALL[0]


def _mentions(environment, text):
    try:
        return text in environment.read_bytes()
    except OSError:  # another's, or it has just ended
        return False


@pytest.mark.parametrize(("forks", "jobs"), [(1, "1"), (2, "1"), (3, "2")], ids=["recording", "judging", "in parallel"])
def test_a_command_that_is_terminated_leaves_nothing(tmp_path, forks, jobs):
    command = [sys.executable, "-m", "tpinit.cli.main", "mutate", "--code", "--only", "topology/", "--jobs", jobs]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        seen = set()
        deadline = time.monotonic() + 100
        while len(seen) < forks and time.monotonic() < deadline:
            seen |= {out.parent for out in tmp_path.glob("tpinit-mutant-*/out")}
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=100)
    finally:
        process.kill()
        process.wait()
    assert len(seen) >= forks
    assert (process.returncode, b"Traceback" in said) == (128 + signal.SIGTERM, False)
    assert list(tmp_path.iterdir()) == []
    processes = Path("/proc").glob("[0-9]*/environ")
    assert not [process.parent.name for process in processes if _mentions(process, os.fsencode(tmp_path))]


class PytestRun(Exception):
    """What a signal raises here."""


@pytest.fixture
def in_two_seconds():
    def end(*_):
        raise PytestRun

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 2)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("in_two_seconds")
def test_a_process_that_is_ended_early_ends_those_that_it_started(tmp_path):
    def sleeps():
        child = subprocess.Popen(["sleep", "60"])
        (tmp_path / "pid").write_text(str(child.pid), encoding="utf-8")
        child.wait()

    with pytest.raises(PytestRun):
        run_forked(tmp_path, 60, sleeps)
    process = Path("/proc", (tmp_path / "pid").read_text(encoding="utf-8"), "stat")
    deadline = time.monotonic() + 10
    while process.exists() and process.read_text().split()[2] not in "ZX" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not process.exists() or process.read_text().split()[2] in "ZX"
