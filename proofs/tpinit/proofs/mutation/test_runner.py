"""Run the project's tests on a mutant: in a forked process, on a copy of the package, the likely killers first.

A worker forks a process for each mutant. The process puts a copy of the package with the mutated module first
on the path, and pytest runs the tests that reach the changed lines, up to the first failure. Which test reaches
which line is recorded once, on the original source.
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
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tpinit.proofs.mutation.sigterm import restore_default_sigterm

__all__ = [
    "Suite",
    "SourceChange",
    "Coverage",
    "PytestRun",
    "temporary_bytecode",
    "check_original",
    "run_forked",
    "record_coverage",
    "run_tests",
    "temporary_folder",
]

_INI = """[pytest]
addopts = --strict-markers --import-mode=importlib
filterwarnings =
    error
    ignore::pytest.PytestAssertRewriteWarning
xfail_strict = true
markers =
    distributed: starts real processes
    timeout: the marker of a plugin that is disabled here
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
class Suite:
    """The test files that must kill the mutants of a module, relative to the root, the likely killers first."""

    root: Path
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SourceChange:
    """A mutated source: its file, relative to the root of the checkout, and its text."""

    file: str
    source: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """The CPU seconds of each test, and for each line of each file (relative to the root) the tests that reach it.

    `modules` are the names of the modules that the tests import, without tpinit and the tests themselves.
    `untraced` are the tests whose tracing failed: each of them counts as reaching every line.
    """

    seconds: Mapping[str, float]
    reached: Mapping[str, Mapping[int, frozenset[str]]]
    modules: frozenset[str] = frozenset()
    untraced: frozenset[str] = frozenset()

    def tests_reaching(self, file: str, lines: Sequence[int]) -> list[str]:
        """Return the tests that reach one of the lines, the cheapest first; all tests where `lines` is empty."""
        by_line = self.reached.get(file, {})
        tests = set().union(self.untraced, *(by_line.get(line, ()) for line in lines)) if lines else set(self.seconds)
        return sorted(tests, key=lambda test: (self.seconds[test], test))


@dataclass(frozen=True, slots=True)
class PytestRun:
    """The result of a pytest run: the test that failed (empty for none), its message, and whether it timed out."""

    failed: str
    message: str = ""
    timed_out: bool = False


@contextmanager
def temporary_bytecode() -> Iterator[None]:
    """Write bytecode to a temporary folder instead of the checkout, in this process and its children."""
    wanted = {"PYTHONPYCACHEPREFIX": "", "PYTHONDONTWRITEBYTECODE": ""}
    environment = {name: os.environ.get(name) for name in wanted}
    here = sys.pycache_prefix, sys.dont_write_bytecode
    with temporary_folder() as folder:
        os.environ.update(wanted, PYTHONPYCACHEPREFIX=str(folder))
        sys.pycache_prefix, sys.dont_write_bytecode = str(folder), False
        try:
            yield
        finally:
            sys.pycache_prefix, sys.dont_write_bytecode = here
            for name, value in environment.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def run_tests(suite: Suite, change: SourceChange, tests: Sequence[str], seconds: float) -> PytestRun:
    """Run the tests in this order on the mutated source, up to the first failure or `seconds` of CPU time."""
    with _changed_tree(suite.root, change) as folder:
        report = run_forked(folder, seconds, lambda: _in_child(suite, folder, change, tests, None))
    return PytestRun("a time-out", "", True) if report is None else PytestRun(report["failed"], report["message"])


def check_original(suite: Suite, file: str, coverage: Coverage) -> None:
    """Check the runner: the original source, reprinted from its syntax tree, passes, and a broken source fails.

    Raises RuntimeError where the original fails, since every mutant would then fail too, and where a source that
    can't be imported passes, since the tests would then not import the mutants.
    """
    source = ast.unparse(ast.parse((suite.root / file).read_text(encoding="utf-8")))
    cheapest = coverage.tests_reaching(file, ())
    by_file = {test.partition("::")[0]: test for test in reversed(cheapest)}  # the cheapest of each file
    tests = [*by_file.values(), *cheapest[:10]]
    original = run_tests(suite, SourceChange(file, source), tests, 60)
    if original.failed:
        raise RuntimeError(f"the original {file} is killed by {original.failed}: {original.message}")
    if not run_tests(suite, SourceChange(file, "raise ImportError\n"), tests, 60).failed:
        raise RuntimeError(f"the tests do not import the mutants of {file}: they pass for a source that raises")


def record_coverage(suite: Suite, files: Sequence[str], seconds: float = 900.0) -> Coverage:
    """Run all tests on the original source and record the CPU time of each and the lines that it reaches.

    Raises RuntimeError where a test fails: a failure for a mutant would then prove nothing.
    """
    with temporary_folder() as folder:
        report = run_forked(folder, seconds, lambda: _in_child(suite, folder, None, None, files))
    if report is None or report["failed"]:
        what = "the tests time out" if report is None else f"{report['failed']} fails: {report['message']}"
        raise RuntimeError(f"the tests must pass on the original source, but {what}")
    reached = {
        file: {int(line): frozenset(tests) for line, tests in by.items()} for file, by in report["reached"].items()
    }
    return Coverage(report["seconds"], reached, frozenset(report["modules"]), frozenset(report["untraced"]))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Create a temporary folder with a pytest.ini, and remove it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="tpinit-mutant-"))
    try:
        (folder / "pytest.ini").write_text(_INI, encoding="utf-8")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _changed_tree(root: Path, change: SourceChange) -> Iterator[Path]:
    """Create a temporary folder whose subfolder `tree` holds a copy of the package with the changed file."""
    with temporary_folder() as folder:
        package = _outermost_package(root, Path(change.file))
        tree = folder / "tree"
        copied = tree / Path(*package.parts[1:])
        shutil.copytree(root / package, copied, ignore=shutil.ignore_patterns("__pycache__"))
        (tree / Path(*Path(change.file).parts[1:])).write_text(change.source, encoding="utf-8")
        yield folder


def _outermost_package(root: Path, file: Path) -> Path:
    """Return the outermost package with an __init__.py that holds a file, such as reference/tpinit/reference.

    Python finds a submodule only in the folder of its package, so a copy of an inner package would not be imported.
    """
    package = file.parent
    while (root / package.parent / "__init__.py").is_file():
        package = package.parent
    return package


def run_forked(folder: Path, seconds: float, work: Any) -> Any:
    """Call `work` in a forked process with its own process group. Return its JSON result; None for a time-out.

    Raises RuntimeError where the process ends in another way, which is no verdict on a mutant.
    """
    answer = folder / "answer.json"
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            restore_default_sigterm()
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            out = os.open(folder / "out", os.O_WRONLY | os.O_CREAT)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for stream, target in ((0, nothing), (1, out), (2, out)):
                os.dup2(target, stream)
            result = work()
            answer.write_text(json.dumps(result), encoding="utf-8")
            status = 0
        except BaseException as error:  # the parent process reports every error
            answer.write_text(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}), encoding="utf-8")
        finally:
            os._exit(status)
    # The CPU limit decides, so that a busy machine does not look like a hang. This deadline is for sleeping tests.
    status = _waited_for(process, time.monotonic() + 20 + 10 * seconds)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return None
    report = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {"error": f"wait status {status}"}
    if "error" in report:
        raise RuntimeError(f"a process that judges a mutant failed: {report['error']}")
    return report


def _waited_for(process: int, deadline: float) -> int:
    """Wait until a forked process ends, or kill it at the deadline; always kill the rest of its process group."""
    with suppress(OSError):
        os.setpgid(process, process)  # the child does the same: the first call counts
    pause = 0.01
    waited = (0, 0)
    try:
        while waited == (0, 0) and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(0.1, pause * 1.5)
            waited = os.waitpid(process, os.WNOHANG)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)  # kills processes that a test left behind
        if waited == (0, 0):
            waited = os.waitpid(process, 0)
    return waited[1]


def _in_child(
    suite: Suite, folder: Path, change: SourceChange | None, tests: Sequence[str] | None, files: Sequence[str] | None
) -> dict[str, Any]:
    loaded = frozenset(sys.modules)
    import pytest

    # Forces a new import, which finds the mutated module. The spec stays: no mutant changes it, and Z3 has its sorts.
    for name in [name for name in sys.modules if name.startswith("tpinit.") and not name.startswith("tpinit.spec")]:
        del sys.modules[name]
    os.chdir(suite.root)
    sys.path[:0] = [str(suite.root / "tests"), str(suite.root / "tests/distributed")]  # as pyproject.toml has them
    sys.dont_write_bytecode = False  # the next mutant reuses the compiled tests; see `temporary_bytecode`
    os.environ["CI"] = "1"  # makes Hypothesis deterministic
    if change is not None:
        tree = str(folder / "tree")
        sys.path.insert(0, tree)
        os.environ["PYTHONPATH"] = os.pathsep.join([tree, *filter(None, [os.environ.get("PYTHONPATH")])])
    recorder = _Recorder(suite.root, tests, files)
    chosen = suite.files if tests is None else _files_of(tests, suite)
    arguments = ["-q", "-x", "--no-header", "-c", str(folder / "pytest.ini"), "--rootdir", str(suite.root)]
    arguments += ["--basetemp", str(folder / "tmp")]
    arguments += [part for name in _PLUGINS for part in ("-p", f"no:{name}")]
    status = pytest.main([*arguments, *chosen], plugins=[recorder])
    expected = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if status not in expected and not recorder.failed:
        raise RuntimeError(f"pytest ended with {status!r}")
    if change is None and status is not pytest.ExitCode.OK and not recorder.failed:
        raise RuntimeError("there are no tests")
    reached = {file: {line: sorted(by) for line, by in lines.items()} for file, lines in recorder.reached.items()}
    own = ("tpinit", "tests", "conftest", "test_")
    modules = [name for name in sys.modules if name not in loaded and not name.startswith(own)]
    report = {"failed": recorder.failed, "message": recorder.message, "seconds": recorder.seconds}
    return {**report, "reached": reached, "modules": modules, "untraced": sorted(recorder.untraced)}


def _files_of(tests: Sequence[str], suite: Suite) -> list[str]:
    named = {test.partition("::")[0] for test in tests}
    return [file for file in suite.files if file in named]


class _Recorder:
    """A pytest plugin: selects and orders the tests, and records their CPU time and the lines that they reach."""

    def __init__(self, root: Path, tests: Sequence[str] | None, files: Sequence[str] | None) -> None:
        self.failed, self.message = "", ""
        self.seconds: dict[str, float] = {}
        self.untraced: set[str] = set()
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
            self.failed, self.message = report.nodeid, str(report.longrepr).strip().splitlines()[-1][:200]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = f"{report.nodeid}, on import"
            self.message = str(report.longrepr).strip().splitlines()[-1][:200]

    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> None:  # noqa: ARG002 - pytest calls it by name
        self._test = item.nodeid

    def pytest_runtest_setup(self, item: Any) -> None:
        self.seconds[item.nodeid] = -time.process_time()
        if self._file_of_path:
            sys.settrace(self._enter)
            threading.settrace(self._enter)  # ranks as threads

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self._file_of_path and sys.gettrace() is None:
            self.untraced.add(nodeid)  # the interpreter removes the tracer when the stack overflows
        sys.settrace(None)
        threading.settrace(None)
        self.seconds[nodeid] = self.seconds.get(nodeid, 0.0) + time.process_time()

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        if code not in self._file_of_code:
            self._file_of_code[code] = self._file_of_path.get(os.path.realpath(code.co_filename))
        file = self._file_of_code[code]
        if file is None:
            return None
        lines = self.reached[file]

        def line(frame: FrameType, event: str, argument: object) -> Any:  # noqa: ARG001 - the signature of a trace function
            lines.setdefault(frame.f_lineno, set()).add(self._test)
            return line

        return line(frame, event, argument)
