"""Running the project's own tests on a mutant: in a forked process, on a copy of the tree, the likely killers first.

A worker forks a process for each mutant. There the changed module stands in a copy of its package, first on
the path, and pytest runs the tests that reach the changed lines, up to the first that fails. Which test
reaches which line was recorded once, on the right source.
"""

from __future__ import annotations

import ast
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tpinit.proofs.mutation.ending import ended_by_default

__all__ = [
    "Battery",
    "Change",
    "Coverage",
    "Ended",
    "bytecode_elsewhere",
    "check",
    "forked",
    "record",
    "run",
    "temporary_home",
]

_INI = """[pytest]
addopts = --strict-markers --import-mode=importlib
filterwarnings =
    error
    ignore::pytest.PytestAssertRewriteWarning
xfail_strict = true
markers =
    distributed: starts real processes
    timeout: of a plugin that is left out here
"""
_PLUGINS = (
    "cacheprovider",
    "xdist",
    "timeout",
    "pytest_timeout",
    "looponfail",
    "unraisableexception",
    "threadexception",
)


@dataclass(frozen=True, slots=True)
class Battery:
    """The tests that must kill the mutants of some modules: test files, most likely killers first."""

    root: Path
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A changed source: of which file of the tree (below the root), and its text."""

    file: str
    source: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """What each test costs in CPU seconds, and for each file (below the root) the tests that reach each line.

    `modules` are the names of what the tests import, tpinit and the tests themselves left out. `unseen` are the
    tests of which it is not known what they reach: any of them may reach any line.
    """

    seconds: Mapping[str, float]
    reached: Mapping[str, Mapping[int, frozenset[str]]]
    modules: frozenset[str] = frozenset()
    unseen: frozenset[str] = frozenset()

    def reaching(self, file: str, lines: Sequence[int]) -> list[str]:
        """Return the tests that reach one of the lines, or all of them where no line is named: the cheapest first."""
        by_line = self.reached.get(file, {})
        tests = set().union(self.unseen, *(by_line.get(line, ()) for line in lines)) if lines else set(self.seconds)
        return sorted(tests, key=lambda test: (self.seconds[test], test))


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: the test that failed (empty for none), in what words, and whether it ran out of time."""

    failed: str
    how: str = ""
    timed_out: bool = False


@contextmanager
def bytecode_elsewhere() -> Iterator[None]:
    """Keep compiled tests in a temporary folder, for this process and those that it starts, not in the tree."""
    wanted = {"PYTHONPYCACHEPREFIX": "", "PYTHONDONTWRITEBYTECODE": ""}
    environment = {name: os.environ.get(name) for name in wanted}
    here = sys.pycache_prefix, sys.dont_write_bytecode
    with temporary_home() as home:
        os.environ.update(wanted, PYTHONPYCACHEPREFIX=str(home))
        sys.pycache_prefix, sys.dont_write_bytecode = str(home), False
        try:
            yield
        finally:
            sys.pycache_prefix, sys.dont_write_bytecode = here
            for name, value in environment.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def run(battery: Battery, change: Change, tests: Sequence[str], seconds: float) -> Ended:
    """Run the tests on the changed tree, in this order, up to the first failure. After `seconds` of CPU it is ended."""
    with _changed_tree(battery.root, change) as home:
        report = forked(home, seconds, lambda: _in_child(battery, home, change, tests, None))
    return Ended("a time-out", "", True) if report is None else Ended(report["failed"], report["how"])


def check(battery: Battery, file: str, coverage: Coverage) -> None:
    """See that a source that means the same passes, by the way that a mutant takes.

    Raises RuntimeError where it fails: then every mutant would, and all kills would be false.
    """
    source = ast.unparse(ast.parse((battery.root / file).read_text(encoding="utf-8")))
    cheapest = coverage.reaching(file, ())
    by_file = {test.partition("::")[0]: test for test in reversed(cheapest)}  # the cheapest of each file
    ended = run(battery, Change(file, source), [*by_file.values(), *cheapest[:10]], 60)
    if ended.failed:
        raise RuntimeError(f"the right {file} is killed by {ended.failed}: {ended.how}")


def record(battery: Battery, files: Sequence[str], seconds: float = 900.0) -> Coverage:
    """Run all tests on the right source and record what each costs and reaches.

    Raises RuntimeError where a test fails: then a mutant's failing would say nothing.
    """
    with temporary_home() as home:
        report = forked(home, seconds, lambda: _in_child(battery, home, None, None, files))
    if report is None or report["failed"]:
        what = "the tests do not end" if report is None else f"{report['failed']} fails: {report['how']}"
        raise RuntimeError(f"the tests must pass on the right source, and {what}")
    reached = {
        file: {int(line): frozenset(tests) for line, tests in by.items()} for file, by in report["reached"].items()
    }
    return Coverage(report["seconds"], reached, frozenset(report["modules"]), frozenset(report["unseen"]))


@contextmanager
def temporary_home() -> Iterator[Path]:
    """Make a temporary folder, and take it away again."""
    home = Path(tempfile.mkdtemp(prefix="tpinit-mutant-"))
    try:
        (home / "pytest.ini").write_text(_INI, encoding="utf-8")
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _changed_tree(root: Path, change: Change) -> Iterator[Path]:
    """Make a temporary folder with a copy of the changed file's package below `tree`."""
    with temporary_home() as home:
        package = Path(change.file).parent  # such as reference/tpinit/reference
        copied = home / "tree" / Path(*package.parts[1:])
        shutil.copytree(root / package, copied, ignore=shutil.ignore_patterns("__pycache__"))
        (copied / Path(change.file).name).write_text(change.source, encoding="utf-8")
        yield home


def forked(home: Path, seconds: float, work: Any) -> Any:
    """Do the work in a forked process of its own group and return what it returned, None where time ran out.

    Raises RuntimeError where the process ends in any other way: that is no verdict on a mutant.
    """
    answer = home / "answer.json"
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            ended_by_default()
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            out = os.open(home / "out", os.O_WRONLY | os.O_CREAT)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for stream, target in ((0, nothing), (1, out), (2, out)):
                os.dup2(target, stream)
            result = work()
            answer.write_text(json.dumps(result), encoding="utf-8")
            status = 0
        except BaseException as error:  # the parent must hear of it, whatever it is
            answer.write_text(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}), encoding="utf-8")
        finally:
            os._exit(status)
    # The CPU limit is the real one: a busy machine must not look like a hang. This one is for sleepers.
    status = _waited_for(process, time.monotonic() + 20 + 10 * seconds)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return None
    report = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {"error": f"wait status {status}"}
    if "error" in report:
        raise RuntimeError(f"a process that judges a mutant failed: {report['error']}")
    return report


def _waited_for(process: int, deadline: float) -> int:
    """Wait until a forked process ends, or end it at the deadline. Whatever happens, nothing of its group is left."""
    with suppress(OSError):
        os.setpgid(process, process)  # as it does itself: whoever is first
    pause = 0.01
    ended = (0, 0)
    try:
        while ended == (0, 0) and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(0.1, pause * 1.5)
            ended = os.waitpid(process, os.WNOHANG)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)  # and what a test left behind
        if ended == (0, 0):
            ended = os.waitpid(process, 0)
    return ended[1]


def _in_child(
    battery: Battery, home: Path, change: Change | None, tests: Sequence[str] | None, files: Sequence[str] | None
) -> dict[str, Any]:
    loaded = frozenset(sys.modules)
    import pytest

    # Imported anew, so that the changed module is found. The spec stays: no mutant changes it, and Z3 knows its sorts.
    for name in [name for name in sys.modules if name.startswith("tpinit.") and not name.startswith("tpinit.spec")]:
        del sys.modules[name]
    os.chdir(battery.root)
    sys.dont_write_bytecode = False  # compiled tests are used again; see `bytecode_elsewhere`
    os.environ["CI"] = "1"  # the same examples of every property test each time
    if change is not None:
        tree = str(home / "tree")
        sys.path.insert(0, tree)
        os.environ["PYTHONPATH"] = os.pathsep.join([tree, *filter(None, [os.environ.get("PYTHONPATH")])])
    recorder = _Recorder(battery.root, tests, files)
    chosen = battery.files if tests is None else _files_of(tests, battery)
    arguments = ["-q", "-x", "--no-header", "-c", str(home / "pytest.ini"), "--rootdir", str(battery.root)]
    arguments += ["--basetemp", str(home / "tmp")]
    arguments += [part for name in _PLUGINS for part in ("-p", f"no:{name}")]
    status = pytest.main([*arguments, *chosen], plugins=[recorder])
    told = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if status not in told and not recorder.failed:
        raise RuntimeError(f"pytest ended with {status!r}")
    if change is None and status is not pytest.ExitCode.OK and not recorder.failed:
        raise RuntimeError("there are no tests")
    reached = {file: {line: sorted(by) for line, by in lines.items()} for file, lines in recorder.reached.items()}
    own = ("tpinit", "tests", "conftest", "test_")
    modules = [name for name in sys.modules if name not in loaded and not name.startswith(own)]
    report = {"failed": recorder.failed, "how": recorder.how, "seconds": recorder.seconds}
    return {**report, "reached": reached, "modules": modules, "unseen": sorted(recorder.unseen)}


def _files_of(tests: Sequence[str], battery: Battery) -> list[str]:
    named = {test.partition("::")[0] for test in tests}
    return [file for file in battery.files if file in named]


class _Recorder:
    """A pytest plugin: keeps the wanted tests, in the wanted order, and records what they cost and reach."""

    def __init__(self, root: Path, tests: Sequence[str] | None, files: Sequence[str] | None) -> None:
        self.failed, self.how = "", ""
        self.seconds: dict[str, float] = {}
        self.unseen: set[str] = set()
        self.reached: dict[str, dict[int, set[str]]] = {file: {} for file in files or ()}
        self._order = None if tests is None else {test: place for place, test in enumerate(tests)}
        self._file_of_path = {str(root / file): file for file in files or ()}
        self._file_of_code: dict[CodeType, str | None] = {}
        self._test = ""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        order = self._order
        if order is not None:
            items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed, self.how = report.nodeid, str(report.longrepr).strip().splitlines()[-1][:200]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = f"{report.nodeid}, on import"
            self.how = str(report.longrepr).strip().splitlines()[-1][:200]

    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> None:  # noqa: ARG002 - pytest calls it by name
        self._test = item.nodeid

    def pytest_runtest_setup(self, item: Any) -> None:
        self.seconds[item.nodeid] = -time.process_time()
        if self._file_of_path:
            sys.settrace(self._enter)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self._file_of_path and sys.gettrace() is None:
            self.unseen.add(nodeid)  # the interpreter drops a tracer that runs out of stack with what it traces
        sys.settrace(None)
        self.seconds[nodeid] = self.seconds.get(nodeid, 0.0) + time.process_time()

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        if code not in self._file_of_code:
            self._file_of_code[code] = self._file_of_path.get(os.path.realpath(code.co_filename))
        file = self._file_of_code[code]
        if file is None:
            return None
        lines = self.reached[file]

        def line(frame: FrameType, event: str, argument: object) -> Any:  # noqa: ARG001 - the shape of a tracer
            lines.setdefault(frame.f_lineno, set()).add(self._test)
            return line

        return line(frame, event, argument)
