"""The protocol of a start: its steps in order, and the exchanges between them (contract 6.12).

    arguments and devices -> prepare -> groups -> probe -> shard -> engine

`initialize` runs these generators with the steps of a real rank; tests run them with steps that fail or differ as a
script says, for every combination, and compare that with what the ranks of a real world do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from tpinit.runtime.groups.agreement import RankReport, check_reports
from tpinit.runtime.groups.protocol import Steps, agree

__all__ = ["RankSteps", "start"]

T_co = TypeVar("T_co", covariant=True)


class RankSteps(Protocol[T_co]):
    """What one rank does in each step.

    Each may raise anything: the ranks learn of it in the exchange that follows. Collectives are issued in them only
    where the ranks have agreed before that all come there.
    """

    def choose_device(self) -> Steps[None]:
        """Check the arguments and choose the device, with one exchange."""

    def prepare(self, report: RankReport) -> None:
        """Read the config, decide, plan, and build the optimizer; the model stays as it is."""

    def lay_out(self, reports: Sequence[RankReport]) -> None:
        """Derive all groups of the world. It reads nothing but the reports, so it raises on all ranks or on none."""

    def make_groups(self) -> None:
        """Try the groups that were given, and make the others."""

    def probe(self) -> Steps[None]:
        """Compare the sharded model with the unsharded one, if `verify` or the model's code asks for it."""

    def shard(self, report: RankReport) -> None:
        """Give every parameter this rank's part of it, and convert the layers."""

    def check_shards(self, reports: Sequence[RankReport]) -> None:
        """Raise if a rank failed, or if ranks that hold the same parts read different ones, by the reports alone."""

    def build(self) -> T_co:
        """Share the state of the random numbers, and build the engine with its schedule and data loader."""


def start(rank: RankSteps[T_co]) -> Steps[T_co]:
    """Start a run on this rank; return what `build` returns. Every rank of the world must run this.

    If a step fails on one rank, or the ranks differ, all ranks raise after the exchange of that step.
    """
    yield from rank.choose_device()
    _, reports = yield from agree("prepare", rank.prepare)
    rank.lay_out(reports)
    yield from agree("groups", lambda _: rank.make_groups())
    yield from rank.probe()
    yield from agree("shard", rank.shard, rank.check_shards)
    started, _ = yield from agree("engine", lambda _: rank.build(), _check_engine)
    return started


def _check_engine(reports: Sequence[RankReport]) -> None:
    check_reports(reports, title="a rank failed after the model was sharded: build a new model for another try")
