"""Tests run on a changed source: in a process and a tree of their own, with the right verdict for each ending."""

from __future__ import annotations

import pytest
from tpinit.proofs.mutation.battery import Battery, Change, Coverage, bytecode_elsewhere, check, forked, record, run
from tpinit.proofs.mutation.battery import temporary_home as home_folder

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
def battery(tmp_path):
    package = tmp_path / "src/mutdemo"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / FILE).write_text(RIGHT, encoding="utf-8")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/conftest.py").write_text(f"import sys; sys.path.append({str(tmp_path / 'src')!r})", "utf-8")
    (tmp_path / "tests/test_half.py").write_text(TESTS, encoding="utf-8")
    with bytecode_elsewhere():
        yield Battery(tmp_path, ("tests/test_half.py",))


def changed(old, new):
    assert RIGHT.count(old) == 1
    return Change(FILE, RIGHT.replace(old, new))


def names(*tests):
    return [f"tests/test_half.py::{test}" for test in tests]


ALL = names("test_half_of_four", "test_half_of_less_than_nothing", "test_of_another_matter")


def test_the_tests_that_reach_a_line_are_known(battery):
    coverage = record(battery, [FILE])
    assert set(coverage.seconds) == set(ALL)
    assert coverage.reaching(FILE, [4]) == names("test_half_of_four")
    assert set(coverage.reaching(FILE, [2])) == set(ALL[:2])
    assert set(coverage.reaching(FILE, [])) == set(ALL)
    assert "mutdemo.numbers" not in coverage.seconds


def test_a_mutant_is_killed_by_the_test_that_fails(battery):
    ended = run(battery, changed("// 2", "// 3"), ALL, 30)
    assert (ended.failed, ended.timed_out) == (ALL[0], False)
    assert "AssertionError" in ended.how or "assert" in ended.how


def test_only_the_given_tests_run_and_in_that_order(battery):
    assert run(battery, changed("return 0", "return 1"), [ALL[0], ALL[2]], 30).failed == ""
    assert run(battery, changed("return 0", "return 1"), list(reversed(ALL)), 30).failed == ALL[1]


def test_the_right_source_survives_and_the_tree_is_as_it_was(battery):
    before = sorted(path.name for path in battery.root.rglob("*"))
    assert run(battery, Change(FILE, RIGHT), ALL, 30).failed == ""
    assert run(battery, changed("// 2", "// 3"), ALL, 30).failed
    assert sorted(path.name for path in battery.root.rglob("*")) == before
    assert (battery.root / FILE).read_text(encoding="utf-8") == RIGHT


def test_a_mutant_that_can_not_be_imported_is_killed(battery):
    assert run(battery, changed("def half(value):", "raise OSError\ndef half(value):"), ALL, 30).failed.endswith(
        "on import"
    )


def test_a_mutant_that_never_ends_is_killed_by_time(battery):
    ended = run(battery, changed("    return value // 2", "    while value: pass"), ALL, 1)
    assert (ended.failed, ended.timed_out) == ("a time-out", True)


def test_a_process_that_fails_by_itself_is_no_verdict():
    def broken():
        raise KeyError("the harness, not the mutant")

    with home_folder() as home, pytest.raises(RuntimeError, match="the harness, not the mutant"):
        forked(home, 5, broken)


def test_tests_that_fail_on_the_right_source_are_refused(battery):
    (battery.root / FILE).write_text(RIGHT.replace("// 2", "// 3"), encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"must pass on the right source.*test_half_of_four"):
        record(battery, [FILE])


def test_no_tests_at_all_are_refused(battery):
    (battery.root / "tests/test_half.py").write_text("", encoding="utf-8")
    with pytest.raises(RuntimeError, match="there are no tests"):
        record(battery, [FILE])


def test_a_way_of_judging_that_kills_the_right_source_is_refused(battery):
    coverage = record(battery, [FILE])
    check(battery, FILE, coverage)
    where = "import mutdemo.numbers\n\ndef test_where():\n    assert '/src/' in mutdemo.numbers.__file__\n"
    (battery.root / "tests/test_half.py").write_text(where, encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"the right .* is killed by .*test_where"):
        check(battery, FILE, Coverage({names("test_where")[0]: 0.0}, {}))
