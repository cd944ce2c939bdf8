"""The pytest plugin: `pytest --tpinit-adapter PKG:OBJECT` adds a test for every conformance vector.

Without that option it adds no tests and imports no other module of the kit. OBJECT is a function
`answer(case) -> result`, called in pytest's own process, or an adapter; `cmd: ...` and the other forms of
`tpinit conform --impl` work too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tpinit.conformance.protocol import Adapter
    from tpinit.conformance.report import CaseReport
    from tpinit.conformance.vectors import Vector

__all__ = ["VectorItem", "pytest_addoption", "pytest_collection_modifyitems", "pytest_configure"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("tpinit", "conformance to the tpinit contract")
    group.addoption("--tpinit-adapter", metavar="IMPL", help="add a test of IMPL for every conformance vector")
    group.addoption("--tpinit-smoke", action="store_true", help="only the smoke subset of the vectors")
    group.addoption("--tpinit-strict", action="store_true", help="count a field that an answer leaves out as wrong")
    group.addoption("--tpinit-known", metavar="FILE", help="known failures: expect exactly these wrong answers")
    group.addoption("--tpinit-timeout", metavar="S", type=float, default=10.0, help="seconds for a case (default: 10)")


def pytest_configure(config: pytest.Config) -> None:
    """Load the kit if --tpinit-adapter is given. Raises UsageError if its value names no adapter."""
    spelled = config.getoption("--tpinit-adapter")
    if spelled:
        config.pluginmanager.register(_Suite(config, spelled), "tpinit-suite")


@pytest.hookimpl(tryfirst=True)  # so that -k and -m select among these tests too
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add a test for each vector."""
    suite: _Suite | None = config.pluginmanager.get_plugin("tpinit-suite")
    if suite is not None:
        items.extend(suite.items(session))


class _Suite:
    """The state that all vector tests share: the adapter, which the first test starts, and the reports so far."""

    def __init__(self, config: pytest.Config, spelled: str) -> None:
        from tpinit.conformance import known, vectors
        from tpinit.conformance.adapters import AdapterError, opener
        from tpinit.conformance.protocol import KitError
        from tpinit.conformance.runner import check_vectors

        direct = spelled.partition(":")[0].strip() in ("cmd", "py", "ranks") or ":" not in spelled
        try:
            self.opener = opener(spelled if direct else f"py: {spelled}", in_process=True)
            self.vectors: tuple[Vector, ...] = vectors.load(smoke=config.getoption("--tpinit-smoke"))
            check_vectors(self.vectors)
            path = config.getoption("--tpinit-known")
            ids = {vector.id for vector in vectors.load()}
            self.failures = known.read(path, ids) if path else ()
        except (AdapterError, known.KnownFailuresError, OSError) as error:
            raise pytest.UsageError(f"tpinit: {error}") from error
        except KitError as error:
            raise pytest.UsageError(f"tpinit: the kit is broken: {error}") from error
        self.strict: bool = config.getoption("--tpinit-strict")
        self.timeout: float = config.getoption("--tpinit-timeout")
        self.spelled = spelled
        self.adapter: Adapter | None = None
        self.who: Any = None
        self.cases: list[CaseReport] = []

    def items(self, session: pytest.Session) -> Iterator[pytest.Item]:
        collector = _Collector.from_parent(session, name="tpinit", nodeid="tpinit")
        for vector in self.vectors:
            yield VectorItem.from_parent(collector, name=vector.id, vector=vector, suite=self)

    def ask(self, vector: Vector) -> CaseReport:
        from tpinit.conformance.adapters.inprocess import plain
        from tpinit.conformance.known import judged
        from tpinit.conformance.runner import begin, judge

        if self.adapter is None:
            adapter = self.opener()
            self.adapter = adapter  # set before it starts, so that a failed start is ended too
            self.who = begin(adapter, "documented")
        answer = self.adapter.run(plain(vector.input), self.timeout)
        case = judge(vector, answer, self.who.choices, strict=self.strict)
        case = judged(case, self.who.name, self.who.version, self.failures)
        self.cases.append(case)
        return case

    def pytest_sessionfinish(self) -> None:
        if self.adapter is not None:
            from tpinit.conformance.protocol import Broken

            with contextlib.suppress(Broken):
                self.adapter.stop()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print what passing tests do not show: choices that were used, fields that were left out."""
        if self.who is None or not self.cases:
            return
        lines = [f"choice {name}: {count} answers permitted by it" for name, count in self._used() if count]
        lines += [f"not all fields were answered: {field}" for field in self._left_out()]
        if lines:
            terminalreporter.section(f"tpinit: {self.who.name} {self.who.version}")
            for line in lines:
                terminalreporter.line(line)

    def _used(self) -> Iterable[tuple[str, int]]:
        return [(name, sum(case.choice == name for case in self.cases)) for name in self.who.choices]

    def _left_out(self) -> list[str]:
        from tpinit.conformance.report import Report
        from tpinit.conformance.terminal import partly_answered

        who = self.who
        return partly_answered(
            Report(who.name, who.version, who.language, self.spelled, "documented", who.choices, "", tuple(self.cases))
        )


class _Collector(pytest.Collector):
    """The parent node of all vector tests, `tpinit`."""

    def collect(self) -> Iterable[pytest.Item]:
        return []


class VectorItem(pytest.Item):
    """The test of one vector."""

    def __init__(self, *, vector: Vector, suite: _Suite, **rest: Any) -> None:
        super().__init__(**rest)
        self.vector = vector
        self.suite = suite

    def runtest(self) -> None:
        """Ask the vector, then pass, fail, skip or xfail according to its status."""
        from tpinit.conformance.protocol import Broken
        from tpinit.conformance.report import CaseStatus

        try:
            case = self.suite.ask(self.vector)
        except Broken as error:
            raise _Wrong(f"the implementation is broken: {error}") from error
        if case.verdict is CaseStatus.SKIPPED:
            pytest.skip(str((case.answer or {}).get("skipped", "")))
        if case.verdict is CaseStatus.KNOWN:
            pytest.xfail(f"known failure: {case.link}")
        if case.verdict is CaseStatus.PERMITTED:
            self.user_properties.append(("tpinit choice", case.choice))
        elif case.verdict is not CaseStatus.AGREED:
            raise _Wrong(_explained(case))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show the input, the expected and the given answer instead of the kit's own stack."""
        if isinstance(excinfo.value, _Wrong):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, None, str]:
        """Return the headline of a failure."""
        return "tpinit", None, f"tpinit::{self.vector.id}"


class _Wrong(Exception):
    """The implementation is wrong or broken, not the kit."""


def _explained(case: CaseReport) -> str:
    import json

    lines = [f"{case.verdict.value.replace('_', ' ')} (row {case.row}; {', '.join(case.clauses)}): {case.effect}"]
    lines += [f"input:    {json.dumps(case.input)}", f"expected: {json.dumps(case.expected)}"]
    lines += [f"given:    {json.dumps(case.answer)}"]
    lines += [
        f"  {difference.field}: expected {json.dumps(difference.expected)}, given {json.dumps(difference.given)}"
        for difference in case.differences
    ]
    return "\n".join([*lines, *([case.detail] if case.detail else []), *([case.link] if case.link else [])])
