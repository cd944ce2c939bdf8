"""The verdict on a recorded step: which results of the ranks are proven to be their parts of those of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tpinit.step.calls import base_name
from tpinit.step.graph import Graph, Op
from tpinit.step.layouts import Kind, Lifted
from tpinit.step.lift import Failure, Lifter, ShardClaim
from tpinit.step.specs import KERNELS
from tpinit.step.whole import WholeStep

__all__ = ["StepResult", "StepVerdict", "prove_step"]

ANOTHER = "the ranks compute another function of the parameters and the batch"
NOT_SUMMED = "each rank has an addend of it, and the addends are not summed"


@dataclass(frozen=True, slots=True)
class StepResult:
    """One result of the step. `reason` is empty if it is proven; `op` is where it is stuck.

    If that is one operation.
    """

    name: str
    reason: str
    op: Op | None = None

    @property
    def proven(self) -> bool:
        """Whether the result is proven."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class StepVerdict:
    """The results of a step, how many operations of rank 0 were lifted, and what the proof rests on, in words."""

    results: tuple[StepResult, ...]
    operations: int
    assumptions: tuple[str, ...] = ()

    @property
    def proven(self) -> bool:
        """Whether every result is proven."""
        return bool(self.results) and all(result.proven for result in self.results)


def prove_step(whole: Graph, ranks: Sequence[Graph], claims: Mapping[str, ShardClaim]) -> StepVerdict:
    """Prove that each result of the ranks is the part, that its claim says, of the result of the whole.

    Losses and norms are replicated; gradients, updated parameters and optimizer states have the layout of their
    parameter. `claims` are about the parameters when the step begins: they are a premise, to be checked where the model
    is sharded. What is not proven is not wrong: it may lack a rule.
    """
    step = WholeStep(whole)
    lifter = Lifter(step, ranks, claims)
    names = {name for graph in (whole, *ranks) for name in graph.results}
    results = [_result(name, step, lifter, ranks, claims) for name in sorted(names)]
    right = {
        place
        for result in results
        if result.proven
        for place in lifter.cone(tuple(graph.results[result.name] for graph in ranks))
    }
    results = [_located(result, lifter, ranks, right) for result in results]
    used = {base_name(graph.ops[place].name) for graph in ranks[:1] for place in lifter.lifted_ops if place >= 0}
    return StepVerdict(tuple(results), len(lifter.lifted_ops), _assumptions(whole, ranks, used))


def _assumptions(whole: Graph, ranks: Sequence[Graph], used: set[str]) -> tuple[str, ...]:
    """Return what a proof of this step rests on, beside the rules."""
    found = [
        "the operations compute in real numbers: rounding is not part of the proof",
        "on every rank each parameter and each state of the optimizer is, when the step begins, the part that the plan "
        "says, and buffers and batch are equal on all ranks",
        "the recorded operations are those of every step: no branch depends on another batch or other weights "
        f"(the host read {len(ranks[0].premises)} numbers on a rank, {len(whole.premises)} in the whole step)",
        "the sizes are those that were recorded",
    ]
    found.extend(
        f"{name} computes each head of each sample by itself, equally on all ranks" for name in sorted(used & KERNELS)
    )
    return tuple(found)


def _result(
    name: str, step: WholeStep, lifter: Lifter, ranks: Sequence[Graph], claims: Mapping[str, ShardClaim]
) -> StepResult:
    missing = [place for place, graph in enumerate(ranks) if name not in graph.results]
    if missing or name not in step.results:
        where = f"ranks {missing}" if missing else "the whole step"
        return StepResult(name, f"{where} did not record it")
    values = tuple(graph.results[name] for graph in ranks)
    found = lifter.lift(values)
    if isinstance(found, Failure):
        op = ranks[0].ops[found.op] if found.op >= 0 else None
        return StepResult(name, found.reason, op)
    if not isinstance(found, Lifted):
        return StepResult(name, f"it is a {type(found).__name__}, not a part of a whole value")
    claim = claims.get(name.rpartition(":")[2] if name.startswith("state ") else name.partition(" ")[2])
    term = step.results[name]
    index = claim.index if claim is not None and term.shape == claim.shape else (None,) * len(term.shape)
    if found.kind is not Kind.SHARD:
        return StepResult(name, NOT_SUMMED)
    if found.term is not term:
        return StepResult(name, ANOTHER)
    if found.index != index:
        return StepResult(name, "the ranks have other parts of it than the plan says")
    return StepResult(name, "")


def _located(result: StepResult, lifter: Lifter, ranks: Sequence[Graph], right: set[int]) -> StepResult:
    """Return a result that is another function, or not summed, with the first operation under it that may be the
    reason.

    That is one whose value is none of the whole step, and that no proven result needs.
    """
    if result.reason not in (ANOTHER, NOT_SUMMED):
        return result
    cone = lifter.cone(tuple(graph.results[result.name] for graph in ranks))
    new = [
        place
        for place, claim in cone.items()
        if place not in right and isinstance(claim, Lifted) and claim.term not in lifter.whole.known
    ]
    return replace(result, op=ranks[0].ops[min(new)]) if new else result
