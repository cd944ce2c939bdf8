"""Before each forward, the ranks of a TP group compare what they call, with which inputs, and from which RNG states.

All ranks of a TP group must run the same forwards on the same batch: each layer's collectives add up what they compute.
A rank that calls something else would train on a mixture without an error, or end the process inside gloo. The
comparison is one all-gather of a record of fixed size, in a group that no collective of the model uses.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from tpinit.runtime.errors import AgreementError, CollectiveError, EngineError
from tpinit.runtime.groups.absent import absent_ranks
from tpinit.runtime.groups.agreement import RankReport, check_reports, gather_reports
from tpinit.runtime.groups.call_inputs import Leaf, describe, fingerprint, has_fake_tensors, leaves
from tpinit.runtime.groups.devices import autocast_dtype, message_device
from tpinit.runtime.groups.flight_recorder import flight_recorder, shown_histories
from tpinit.runtime.groups.issuing import collective
from tpinit.runtime.groups.process_groups import GroupView, ParallelGroups
from tpinit.runtime.parallel.forward_scope import scope_of
from tpinit.runtime.parallel.rng import SharedRng, rng_fingerprint
from tpinit.runtime.training.input_devices import misplaced, misplaced_error
from tpinit.runtime.training.tree_check import TreeCheck

__all__ = ["CallCheck", "watch_calls"]

_log = logging.getLogger("tpinit")
_RNG = -1  # the place of the RNG states in a record; they may differ


class CallCheck:
    """Compares the calls of one model over its TP group, and lets its ranks draw the same random numbers.

    `every`: compare every so many forwards; 0 compares none. `step` counts the updates, for errors. Where the RNG
    states of the ranks are equal, the forward draws from them, as the unsharded model does. Where they differ (a script
    seeded each rank by its number, or drew on one rank only), it draws from generators that are seeded alike on all
    ranks, and the caller's states are restored behind it.
    """

    def __init__(self, groups: ParallelGroups, device: torch.device, every: int) -> None:
        self.tp: GroupView | None = groups.tp
        self.device = device
        self.every = every
        self.number = groups.run
        self.calls = 0
        self.step = 0
        self._misplaced: list[str] = []  # inputs of the present call
        self.destroyed = False  # the groups are freed
        self.inside_generate = False
        self._rng = SharedRng(device, groups.data_index)
        self._first_seed = rng_fingerprint(device)  # equal on all ranks: initialize has just broadcast the states
        self._watched: tuple[list[nn.Module], list[nn.Parameter]] | None = None
        self.tree: TreeCheck | None = None
        self._changes = ""

    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Compare this forward with those of the other ranks. Raises AgreementError on all ranks if they differ.

        A part of the model that is called directly is compared inside `generate` only: elsewhere it may be the
        recomputation of a checkpointed one.
        """
        if torch.compiler.is_compiling() or not self.compares:
            return
        if scope_of(model) is None and not self.inside_generate:
            return
        self.check_alive("forward")
        _enter(self, model, args, kwargs)

    def check_alive(self, what: str) -> None:
        """Raise EngineError if the engine was destroyed: its process groups are freed."""
        if self.destroyed:
            raise EngineError(f"{what}: engine.destroy() has freed the process groups of this model")

    def leave(self, _: nn.Module, output: Any) -> Any:
        """Restore the caller's RNG states."""
        if not torch.compiler.is_compiling() and not self.inside_generate:
            self._rng.leave()
        return output

    def compare(
        self,
        what: str,
        model: nn.Module,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: Mapping[str, object] | None = None,
    ) -> None:
        """Compare one call, and enter the shared RNG states if the ranks' own differ.

        `options` are values beside the arguments that must be equal on all ranks.
        Raises AgreementError if a rank calls something else, EngineError if the model was changed in the same way on
        all ranks (`TreeCheck`), DeviceError for inputs on another device: each of them on every rank.
        """
        assert self.tp is not None
        is_whole = scope_of(model) is not None  # and not a model inside, which `generate` calls
        changes = self._changes = self.tree.changes(model) if self.tree is not None and is_whole else ""
        found = leaves(function, args, kwargs)
        self._misplaced = misplaced(found, self.device, model)
        record = torch.tensor(
            [
                _hash(what, self.number),
                self.calls,
                _hash(self._mode(model), _told(options)),
                fingerprint(found),
                rng_fingerprint(self.device),
            ]
        )
        records = self._gather(record, what)
        if any(not torch.equal(other[:_RNG], record[:_RNG]) for other in records):
            self._raise(what, model, found, options)
        if changes:
            raise EngineError(changes)
        if self._misplaced:
            raise misplaced_error(self._misplaced, self.device)
        if any(other[_RNG] != record[_RNG] for other in records) and not self.inside_generate:
            self._rng.enter(int(records[0][_RNG]))

    @property
    def compares(self) -> bool:
        """Whether there are other ranks to compare with."""
        return self.tp is not None and self.tp.control is not None

    def compare_call(
        self,
        what: str,
        model: nn.Module,
        function: Callable[..., Any] | None = None,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        keep_rng: bool = False,
        options: Mapping[str, object] | None = None,
    ) -> None:
        """Compare a call other than a forward: AgreementError on all ranks if one of them calls something else.

        `keep_rng`: the ranks go on to draw the same random numbers, until `leave_rng`.
        """
        self.check_alive(what)
        if not self.compares:
            return
        self.calls += 1
        self.compare(what, model, function or model.forward, args, kwargs or {}, options)
        if not keep_rng:
            self.leave_rng()

    def leave_rng(self) -> None:
        """Restore the caller's RNG states."""
        self._rng.leave()

    def any_rank(self, what: str, model: nn.Module, flag: bool, options: Mapping[str, object] | None = None) -> bool:
        """Return whether `flag` is true on any rank. Raises AgreementError if the ranks ask for different things.

        `options` are values of the call that must be equal on all ranks.
        """
        self.calls += 1
        record = torch.tensor([_hash(what, self.number), self.calls, _hash(_told(options)), 0, int(flag)])
        records = self._gather(record, what)
        if any(not torch.equal(other[:_RNG], record[:_RNG]) for other in records):
            self._raise(what, model, [], options)
        return any(bool(other[_RNG]) for other in records)

    def meet(self, what: str, model: nn.Module, options: Mapping[str, object] | None = None) -> None:
        """Compare a call without inputs, once: AgreementError on all ranks if one of them calls something else."""
        self.check_alive(what)
        if self.compares and self.every:
            self.any_rank(what, model, False, options)

    def _gather(self, record: torch.Tensor, what: str) -> list[torch.Tensor]:
        assert self.tp is not None
        group = self.tp.control
        sent = record.to(message_device(group))
        records = [torch.empty_like(sent) for _ in range(self.tp.size)]
        try:
            collective("all_gather", f"the comparison of {what} {self.calls}", records, sent, group=group)
        except CollectiveError as error:
            place = f"{what}/{self.number}/{self.calls}/{','.join(map(str, self.tp.ranks))}"
            absent = absent_ranks(self.tp.ranks, place)
            names = f" (did not come: rank {', '.join(map(str, absent))})" if absent else ""
            raise AgreementError(
                f"{what} {self.calls}, step {self.step}: not every rank of the TP group (ranks "
                f"{', '.join(map(str, self.tp.ranks))}) made this call{names}: a rank ended, or went on to something "
                f"else; all must call the model together, in training and in evaluation ({error.reason}); "
                f"{error.histories}",
                ["call"],
            ) from error
        return [other.cpu() for other in records]

    def _raise(
        self, what: str, model: nn.Module, found: list[Leaf], options: Mapping[str, object] | None = None
    ) -> None:
        """Gather what the ranks were given, and raise an AgreementError that names what differs."""
        assert self.tp is not None
        fields = {
            "call": f"{what} {self.calls} of engine {self.number}",
            **self._mode(model),
            **describe(found),
            **(options or {}),
        }
        reports = gather_reports(RankReport(fields), self.tp.control)
        title = (
            f"step {self.step}: the ranks of a TP group called the model differently; all of them must make the same "
            "calls, with the same batch (seed a sampler by the data-parallel rank, engine.groups.data_index)"
        )
        # Another call explains every other difference.
        if any(report.fields["call"] != fields["call"] for report in reports):
            self._raise_calls(reports, title)
        check_reports(reports, self.tp.ranks, title)
        raise AgreementError(f"{title}: what differs is not among the values that can be shown", ["inputs"])

    def _raise_calls(self, reports: list[RankReport], title: str) -> None:
        """Raise an AgreementError that names the ranks' calls, and what each of them sent before."""
        assert self.tp is not None
        told: list[list[str]] = [[] for _ in reports]
        name = "the last collectives of the ranks"
        collective("all_gather_object", name, told, flight_recorder().last(), group=self.tp.control)
        try:
            check_reports([RankReport({"call": report.fields["call"]}) for report in reports], self.tp.ranks, title)
        except AgreementError as error:
            histories = shown_histories(dict(zip(self.tp.ranks, told, strict=True)))
            raise AgreementError(f"{error}\n{histories}", error.fields) from None

    def _mode(self, model: nn.Module) -> dict[str, object]:
        """Return what decides, beside the inputs, which collectives a forward and its backward issue."""
        if self._watched is None:
            self._watched = list(model.modules()), list(model.parameters())
        modules, parameters = self._watched
        training = [module.training for module in modules]
        trainable = [parameter.requires_grad for parameter in parameters]
        autocast = autocast_dtype(self.device.type) or "off"
        return {
            "mode": f"{'training' if model.training else 'evaluation'}, gradients "
            f"{'on' if torch.is_grad_enabled() else 'off'}, autocast {autocast}",
            "inputs on another device": ", ".join(self._misplaced) or "none",
            "modules in training mode": _counted(training),
            "trainable parameters": _counted(trainable),
            **({"model": self._changes} if self._changes else {}),
        }

    def seed_unchecked(self) -> None:
        """Enter RNG states that all ranks derive from those at initialize and the number of this forward."""
        if not self.inside_generate:
            self._rng.enter(_hash(self._first_seed, self.calls))

    def __deepcopy__(self, _: dict[int, Any]) -> CallCheck:
        """Return a check for a copied model: it trains in the same group, and counts its own calls."""
        twin = CallCheck.__new__(CallCheck)
        twin.__dict__.update(self.__dict__, _watched=None, inside_generate=False, tree=copy.deepcopy(self.tree))
        twin._rng = SharedRng(self.device, self._rng.replica)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the group, which can't be pickled: an unpickled model compares nothing."""
        return {**self.__dict__, "tp": None, "_watched": None, "tree": None}


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
def _enter(check: CallCheck, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    if has_fake_tensors(args, kwargs):
        return
    check.calls += 1
    if check.every and check.calls % check.every == 0:
        check.compare("forward", model, model.forward, args, kwargs)
    elif check.tree is not None and (changes := check.tree.changes(model)):
        raise EngineError(changes)
    if check.every != 1:
        check.seed_unchecked()


def _counted(flags: list[bool]) -> str:
    return f"{sum(flags)} of {len(flags)}, hash {hash(tuple(flags)) & 0xFFFF:04x}"


def _told(options: Mapping[str, object] | None) -> list[tuple[str, object]]:
    return sorted((options or {}).items())


def _hash(*values: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(values).encode(), digest_size=8).digest(), "little") >> 1


def watch_calls(model: nn.Module, check: CallCheck) -> None:
    """Run `check` around each outermost forward of a converted model."""
    scope = scope_of(model)
    if scope is None:
        return
    if check.every == 0 and check.compares:
        _log.warning("check_inputs_every=0: the ranks of a TP group do not compare their inputs")
    scope.add(check.enter, check.leave, first=True)
