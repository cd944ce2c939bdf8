"""The pytest plugin: three lines in another project's CI, and nothing at all where it is not asked for."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from tpinit.conformance import known
from tpinit.conformance.adapters.inprocess import CallableAdapter
from tpinit.conformance.runner import conform
from tpinit.conformance.vectors import load

SMOKE = load(smoke=True)
MINE = """
from tpinit.conformance.miniatures.answering import always_right, permissive
from tpinit.conformance.protocol import Skip

def adapter(case):
    return always_right(case)

def wrong_in_row_3(case):
    answer = always_right(case)
    return {**answer, "row": 4} if answer["row"] == 3 else answer

def some(case):
    if case["call"] is None:
        raise Skip("no such thing here")
    return {"outcome": always_right(case)["outcome"]}

adapter.implementation = wrong_in_row_3.implementation = {"name": "mine", "version": "1.0"}
"""
PLUGIN = ("-p", "tpinit.conformance.plugin")


@pytest.fixture
def run(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "test_own.py").write_text("def test_of_my_own():\n    pass\n")

    def call(*arguments, program=("-m", "pytest"), installed=False):
        # Without all the other plugins that are installed here, unless it is about how this one is installed.
        alone = {} if installed else {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        plugin = () if installed else PLUGIN
        return subprocess.run(
            [sys.executable, *program, *plugin, "-p", "no:cacheprovider", "-W", "error", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")} | alone,
        )

    return call


def test_every_vector_is_a_test(run):
    done = run("--tpinit-adapter", "mine:adapter", "-q", "--no-header")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(load()) + 1} passed" in done.stdout
    assert "tpinit:" not in done.stdout


def test_it_is_there_wherever_the_package_is_installed(run):
    (entry,) = entry_points(group="pytest11", name="tpinit")
    assert entry.value == "tpinit.conformance.plugin"
    done = run("--tpinit-adapter", "mine:adapter", "--tpinit-smoke", "-q", installed=True)
    assert f"{len(SMOKE) + 1} passed" in done.stdout, done.stdout + done.stderr


def test_a_wrong_answer_fails_its_test_alone_and_says_why(run):
    done = run("--tpinit-adapter", "mine:wrong_in_row_3", "--tpinit-smoke")
    wrong = [vector.id for vector in SMOKE if vector.row == 3]
    assert done.returncode == 1
    assert f"{len(wrong)} failed, {len(SMOKE) - len(wrong) + 1} passed" in done.stdout
    assert "row: expected 3, given 4" in done.stdout
    assert all(f"FAILED tpinit::{name}" in done.stdout for name in wrong)
    assert "runner.py" not in done.stdout  # no stack of the kit's


def test_tests_are_selected_as_any_others(run):
    done = run("--tpinit-adapter", "mine:adapter", "--tpinit-smoke", "-k", "r07", "-v")
    assert "1 passed" in done.stdout
    assert "tpinit::r07-" in done.stdout


def test_known_failures_are_expected_and_passing_them_is_not(run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    import mine

    monkeypatch.delitem(sys.modules, "mine")
    made = conform(lambda: CallableAdapter(mine.wrong_in_row_3), SMOKE)
    record = known.record(made, "==1.0", "https://example.org/3")
    (tmp_path / "known.json").write_text(json.dumps(record))
    options = ("--tpinit-smoke", "--tpinit-known", "known.json")
    done = run("--tpinit-adapter", "mine:wrong_in_row_3", *options)
    assert done.returncode == 0, done.stdout
    assert f"{len(record['failures'])} xfailed" in done.stdout
    fixed = run("--tpinit-adapter", "mine:adapter", *options)
    assert fixed.returncode == 1
    assert "unexpected pass" in fixed.stdout


def test_what_was_permitted_skipped_or_left_out_is_said(run):
    permissive = run("--tpinit-adapter", "mine:permissive", "--tpinit-smoke")
    assert permissive.returncode == 0
    assert "choice row5-creates-group: 1 answers permitted by it" in permissive.stdout
    some = run("--tpinit-adapter", "mine:some", "--tpinit-smoke", "-rs")
    assert some.returncode == 0
    assert "no such thing here" in some.stdout
    assert "not all fields were answered: row in 0 of" in some.stdout
    assert run("--tpinit-adapter", "mine:some", "--tpinit-smoke", "--tpinit-strict").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--tpinit-adapter", "mine:nobody"), "has no 'nobody'"),
        (("--tpinit-adapter", "no.such:adapter"), "no such module"),
        (("--tpinit-adapter", "mine:adapter", "--tpinit-known", "no.json"), "no.json"),
    ],
)
def test_a_usage_error_is_one(run, arguments, word):
    done = run(*arguments)
    assert done.returncode == 4  # pytest's own exit code for it
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_option_nothing_of_the_kit_is_loaded(run):
    program = (
        "-c",
        "import sys, pytest; status = pytest.main(sys.argv[1:]);"
        "print(sorted(name for name in sys.modules if name.startswith(('tpinit.', 'hypothesis')))); sys.exit(status)",
    )
    done = run("-q", program=program)
    assert done.returncode == 0, done.stderr
    assert "1 passed" in done.stdout
    loaded = {name.strip("'[] ") for name in done.stdout.strip().splitlines()[-1].split(",")}
    assert loaded <= {"tpinit.conformance", "tpinit.conformance.plugin"}
    # The control: with the option, the kit is loaded, and Hypothesis still is not.
    asked = run("-q", "--tpinit-adapter", "mine:adapter", "--tpinit-smoke", program=program)
    assert "'tpinit.conformance.runner'" in asked.stdout
    assert "'hypothesis'" not in asked.stdout
