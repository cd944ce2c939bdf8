"""The whole run: every vector that real ranks can run, the inputs of the catalogue, and programs of several calls."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpinit.conformance.adapters.deepspeed.adapter import RankServerAdapter, run_job
from tpinit.conformance.adapters.deepspeed.host import RankServer
from tpinit.conformance.adapters.deepspeed.jobs import materialise
from tpinit.conformance.adapters.deepspeed.observation import Observation, StartStatus
from tpinit.conformance.protocol import Implementation, Skipped
from tpinit.conformance.report import Report
from tpinit.conformance.runner import RunOptions, conform
from tpinit.conformance.vectors import Vector, load

from studies.deepspeed.catalogue import CatalogueEntry, entries, expected_of, job_of_entry, rows
from studies.deepspeed.findings import StudiedCase
from studies.deepspeed.judge import Aspect, Departure, DepartureKind, Expected, judge
from studies.deepspeed.sequences import job_of_sequence, judge_sequence, sequences

__all__ = ["Campaign", "run"]

_TIMEOUT = 25.0
_SMOKE_ENTRIES = ("section-dtype-bf16", "nested-size-2", "autotp-size-3", "batch-4-2")
_SMOKE_PROGRAMS = ("two-models-4-2", "second-mpu", "record-outlives")


@dataclass(slots=True)
class Campaign:
    """The result of one run: the kit's report on the vectors, and every case with its departures."""

    who: Implementation
    report: Report | None = None
    vectors: list[StudiedCase] = field(default_factory=list)
    rows: list[tuple[CatalogueEntry, Observation, list[Departure]]] = field(default_factory=list)
    written: list[StudiedCase] = field(default_factory=list)
    programs: list[StudiedCase] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def cases(self) -> list[StudiedCase]:
        """All cases, those of the vectors first."""
        return [*self.vectors, *self.written, *self.programs]


class _NotingAdapter:
    """An adapter that passes each case, its observation and its answer to `note`, in the order of the cases."""

    def __init__(self, adapter: RankServerAdapter, note: Callable[[Any, Observation | None, Any], None]) -> None:
        self._adapter = adapter
        self._note = note

    def start(self) -> Implementation:
        return self._adapter.start() if self._adapter.server is None else _who(self._adapter)

    def dialect(self, name: str) -> bool:
        return self._adapter.dialect(name)

    def run(self, case: Any, timeout: float) -> Any:
        answer = self._adapter.run(case, timeout)
        self._note(case, self._adapter.last, answer)
        return answer

    def stop(self) -> None:
        """Do nothing: the campaign continues with the same server."""


def _who(adapter: RankServerAdapter) -> Implementation:
    assert adapter.server is not None
    return Implementation(adapter.server.name, adapter.server.version, "Python", choices=adapter.choices, isolated=True)


def run(
    adapter: RankServerAdapter,
    *,
    smoke: bool = False,
    parts: Sequence[str] = ("vectors", "written", "programs"),
    say: Callable[[str], None] = lambda _: None,
) -> Campaign:
    """Run all parts (or their smoke subset) with one fork server. Raises Broken if it does not start."""
    begun = time.monotonic()
    who = adapter.start()
    campaign = Campaign(who)
    try:
        say(f"{who.name} {who.version} started after {time.monotonic() - begun:.0f} s")
        if "vectors" in parts:
            _vectors(campaign, adapter, smoke)
            say(f"{len(campaign.vectors)} vectors after {time.monotonic() - begun:.0f} s")
        assert adapter.server is not None
        if "rows" in parts or "written" in parts:
            _written(campaign, adapter.server, smoke, "written" not in parts)
            say(f"{len(campaign.written)} inputs of the catalogue after {time.monotonic() - begun:.0f} s")
        if "programs" in parts:
            _programs(campaign, adapter.server, smoke)
            say(f"{len(campaign.programs)} programs after {time.monotonic() - begun:.0f} s")
    finally:
        adapter.stop()
    campaign.seconds = time.monotonic() - begun
    return campaign


def _vectors(campaign: Campaign, adapter: RankServerAdapter, smoke: bool) -> None:
    vectors = load(smoke)
    by_input = {_key(vector.input): vector for vector in vectors}

    def note(case: Any, seen: Observation | None, answer: Any) -> None:
        vector = by_input[_key(case)]
        if seen is None or isinstance(answer, Skipped):
            reason = answer.reason if isinstance(answer, Skipped) else str(answer)
            campaign.vectors.append(StudiedCase(vector.id, "", answered=False, reason=reason))
            return
        campaign.vectors.append(StudiedCase(vector.id, vector.why["effect"], _judged(vector, seen)))

    settings = RunOptions(passes=1, timeout=_TIMEOUT, give_up=10**6, spelled=campaign.who.name)
    campaign.report = conform(lambda: _NotingAdapter(adapter, note), vectors, settings)


def _key(case: Any) -> str:
    return json.dumps(case, sort_keys=True)


def _judged(vector: Vector, seen: Observation) -> list[Departure]:
    world, mpu = vector.input["world_size"], vector.input["mpu"]
    partitions = materialise(vector.input)
    expected = Expected.of(vector.expected, world, partitions, mpu and mpu["tp_group"])
    return judge(expected, seen)


def _written(campaign: Campaign, server: RankServer, smoke: bool, only_rows: bool) -> None:
    the_rows = {entry.id for entry in rows()}
    for entry in entries():
        if entry.only not in (None, server.implementation) or (only_rows and entry.id not in the_rows):
            continue
        if smoke and entry.id not in the_rows and entry.id not in _SMOKE_ENTRIES:
            continue
        seen = run_job(server, job_of_entry(entry, _TIMEOUT))
        if seen.ended is StartStatus.ERROR and "is not supported on your device" in seen.message:
            campaign.written.append(StudiedCase(entry.id, entry.title, answered=False, reason=seen.message))
            continue
        departures = judge(expected_of(entry), seen)
        campaign.written.append(StudiedCase(entry.id, entry.title, departures))
        if entry.id in the_rows:
            campaign.rows.append((entry, seen, departures))


def _programs(campaign: Campaign, server: RankServer, smoke: bool) -> None:
    for program in sequences():
        if smoke and program.id not in _SMOKE_PROGRAMS:
            continue
        report = server.run(job_of_sequence(program, _TIMEOUT))
        departures = judge_sequence(program, report)
        if report["hung"]:
            text = f"ranks {report['hung']} hang"
            departures = [*departures, Departure(DepartureKind.HANG, Aspect.OUTCOME, "every rank goes on", text)]
        campaign.programs.append(StudiedCase(program.id, program.title, departures))
