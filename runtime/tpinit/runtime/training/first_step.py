"""The first training step: does each sharded layer run its parallel forward, and each collective of the plan happen?

From `initialize` to the first update the layers count (`parallel.tally`). After a forward of the model the counts of
each layer are compared with the plan: as many calls of its region functions as forwards, and as many collectives as
these functions issue by the table of `parallel.layer_kinds`. Before the update the collectives of the backward passes
are compared with the operations that autograd ran. A layer that a forward skips counts nothing, and needs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.agreement import RankReport, check_reports, gather_reports
from tpinit.runtime.groups.call_inputs import has_fake_tensors
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.parallel.collectives import RegionFunction, copy_to_tp_region
from tpinit.runtime.parallel.forward_scope import running_scope, scope_of
from tpinit.runtime.parallel.layer_kinds import LayerKind, layer_regions
from tpinit.runtime.parallel.loss import LOSS_COLLECTIVE
from tpinit.runtime.parallel.sequence import gather_replicated_tokens, gather_tokens, split_tokens
from tpinit.runtime.parallel.tally import BACKWARD, FORWARD, Place, Tally, set_place
from tpinit.runtime.planning.schema import LayerPlan, Plan, SequencePlan
from tpinit.runtime.training.hook_places import token_places

__all__ = ["FirstStep"]

_FORWARDS = 8  # counted at most, with gradients, before the first update
_SHOWN = 6  # problems in an error
_TOKENS = " (tokens)"
_TITLE = "the ranks of a TP group ran different layers or collectives in the first step"


class FirstStep:
    """Counts the first forwards of a model, and its backward passes up to the first `step` of an optimizer.

    The ranks compare the counts of the first forward without gradients, of the first with gradients, and of the
    backward passes: three small all-gathers in the life of a model. Then nothing is counted any more. `trains`: there
    is an optimizer, so `before_update` will be called.
    """

    def __init__(self, model: nn.Module, plan: Plan, tp: GroupView, *, trains: bool) -> None:
        self._model, self._plan, self._tp, self._trains = model, plan, tp, trains
        self._tally = Tally()
        self._agreed = {True: False, False: False}  # by whether gradients are on
        self._counted = 0  # forwards with gradients
        self._problems: list[str] = []  # of forwards that the ranks did not compare
        self.done = False
        for layer in plan.layers:
            set_place(model.get_submodule(layer.module), Place(self._tally, layer.module))
        for sequence in plan.sequences:
            for name in token_places(model, sequence):
                set_place(model.get_submodule(name), Place(self._tally, f"{name}{_TOKENS}"), of_tokens=True)
        scope = scope_of(model)
        assert scope is not None
        scope.add(self.enter, self.leave, first=True)

    def enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Begin to count a forward."""
        if self.done or torch.compiler.is_compiling():
            return
        self._enter(args, kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
    def _enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._tally.in_forward = False
        has_gradients = torch.is_grad_enabled()
        if has_fake_tensors(args, kwargs) or (not has_gradients and self._agreed[False]):
            return
        self._counted += has_gradients
        if self._counted > (_FORWARDS if self._trains else 1):
            if not self._trains:
                self.stop()
            return
        self._tally.clear_forward()
        self._tally.in_forward = True

    def leave(self, _: nn.Module, output: Any) -> Any:
        """Compare the counts of a forward with the plan. Raises on all ranks if they differ on one."""
        if self.done or torch.compiler.is_compiling() or not self._tally.in_forward:
            return output
        self._tally.in_forward = False
        scope = running_scope()
        if output is not None and not (scope is not None and scope.tokens.leave_whole):  # else it raised, or is another
            self._check_forward(torch.is_grad_enabled())
        return output

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the same
    def _check_forward(self, has_gradients: bool) -> None:
        problems = list(self._forward_problems())
        if self._agreed[has_gradients]:
            self._problems += problems
            return
        self._agreed[has_gradients] = True
        self._agree(problems, {f"forwards of {name}": count for name, count in sorted(self._tally.forwards.items())})

    def before_update(self) -> None:
        """Compare the collectives of the backward passes, before the first update. Raises on all ranks of the group."""
        if self.done or not self._counted:  # torch.distributed.checkpoint makes a step before any forward
            return
        problems = [*self._problems, *self._backward_problems()]
        self.stop()
        self._agree(problems, {f"backward of {name}": count for (name, _), count in sorted(self._tally.due.items())})

    def stop(self) -> None:
        """Stop counting, and compare nothing any more."""
        self.done = self._tally.done = True
        self._tally.in_forward = False

    def _agree(self, problems: list[str], counts: Mapping[str, object]) -> None:
        error = _text(problems) if problems else None
        reports = gather_reports(RankReport(dict(counts), error=error), self._tp.control)
        check_reports(reports, self._tp.ranks, _TITLE)
        if error is not None:
            raise EngineError(f"ranks {', '.join(map(str, self._tp.ranks))}, {error}")

    def _forward_problems(self) -> Iterator[str]:
        for layer in self._plan.layers:
            yield from _layer_problems(layer, self._tally)
        for sequence in self._plan.sequences:
            yield from _sequence_problems(self._model, sequence, self._tally)

    def _backward_problems(self) -> Iterator[str]:
        issued = {(name, kind): n for (name, way, kind), n in self._tally.issued.items() if way == BACKWARD}
        for name, kind in sorted({*issued, *self._tally.due}):
            due, seen = self._tally.due[name, kind], issued.get((name, kind), 0)
            if due != seen:
                yield f"{name}: {kind} in the backward: expected {due}, saw {seen}"

    def __deepcopy__(self, _: dict[int, Any]) -> FirstStep:
        """Return one that counts nothing: a copied model has the layers that were counted here."""
        twin = FirstStep.__new__(FirstStep)
        twin.done = True
        return twin


def _layer_problems(layer: LayerPlan, tally: Tally) -> Iterator[str]:
    """Yield where the counts of a layer in one forward of the model differ from its plan."""
    name, forwards = layer.module, tally.forwards[layer.module]
    shown = f"{name} ({layer.kind.value})"
    regions = layer_regions(layer.kind, reduce_input_grad=layer.reduce_input_grad, scatter_output=layer.scatter_output)
    planned = {region: forwards for region in (regions.input, regions.output) if region is not None}
    losses = 0
    if layer.kind is LayerKind.HEAD and regions.output is not None:  # it gathers logits, or a loss reads local ones
        planned[regions.output] = min(forwards, tally.applied[name, regions.output])
        if planned[regions.output] < forwards:
            issued = tally.issued[name, FORWARD, LOSS_COLLECTIVE.value]
            losses = max(1, issued - planned[regions.output])
    for region in _regions_of(planned, name, tally):
        wanted, seen = planned.get(region, 0), tally.applied[name, region]
        router_copies = layer.kind is LayerKind.EXPERTS and region is copy_to_tp_region and seen > wanted
        if seen != wanted and not router_copies:
            yield f"{shown}: {_described(region)}: expected {wanted} in {forwards} forwards, saw {seen}"
    yield from _collective_problems(shown, name, planned, losses, tally)


def _collective_problems(
    shown: str, name: str, planned: Mapping[RegionFunction, int], losses: int, tally: Tally
) -> Iterator[str]:
    """Yield the kinds of collectives of which a place issued more or fewer in the forward than planned."""
    expected = Counter({LOSS_COLLECTIVE.value: losses})
    for region, count in planned.items():
        if region.forward.collective is not None:
            expected[region.forward.collective.value] += count
    kinds = {kind for place, way, kind in tally.issued if place == name and way == FORWARD}
    for kind in sorted({*expected, *kinds}):
        seen = tally.issued[name, FORWARD, kind]
        if seen != expected[kind]:
            yield f"{shown}: {kind} in the forward: expected {expected[kind]}, saw {seen}"


def _regions_of(planned: Mapping[RegionFunction, int], name: str, tally: Tally) -> list[RegionFunction]:
    return list(dict.fromkeys([*planned, *(region for place, region in tally.applied if place == name)]))


def _sequence_problems(model: nn.Module, sequence: SequencePlan, tally: Tally) -> Iterator[str]:
    """Yield where tokens were not split and gathered in pairs, or not gathered for sharded layers that ran."""
    places = token_places(model, sequence)
    splits, gathers = (
        sum(tally.applied[f"{name}{_TOKENS}", region] for name in places)
        for region in (split_tokens, gather_replicated_tokens)
    )
    readers = any(tally.forwards[name] for name in sequence.column_readers)
    if splits != gathers or (readers and not splits):
        yield f"{sequence.stack}: tokens were split {splits} times, and gathered {gathers} times"
    read = sum(tally.applied[f"{name}{_TOKENS}", gather_tokens] for name in places)
    issued = sum(tally.issued[f"{name}{_TOKENS}", FORWARD, "all_gather"] for name in places)
    if readers and not read:
        yield f"{sequence.stack}: the tokens were not gathered for its sharded layers"
    if not min(read, 1) + gathers <= issued <= read + gathers:
        yield f"{sequence.stack}: all_gather in the forward: expected {gathers} to {read + gathers}, saw {issued}"


def _described(region: RegionFunction) -> str:
    steps = [f"{kind.value} in the {direction}" for direction, kind in region.collectives()]
    return f"region function ({', '.join(steps)})"


def _text(problems: list[str]) -> str:
    more = [f"  and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return "\n".join(
        [
            "first step: what ran is not what was planned, and nothing was updated:",
            *(f"  {problem}" for problem in problems[:_SHOWN]),
            *more,
            "  fix: build a new model, patch its layers and forwards before initialize, where planning sees it",
        ]
    )
