"""Loading a checkpoint into an engine: first everything is compared, then everything is filled, then it is set."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import optim
from torch.optim import Optimizer
from tpinit.runtime.checkpoint.load import Opened, check_targets, fill
from tpinit.runtime.checkpoint.optimizer_states import FOREIGN
from tpinit.runtime.checkpoint.places import PlacedTensor
from tpinit.runtime.checkpoint.schedule_states import check_own_schedule, check_schedule
from tpinit.runtime.checkpoint.values import check_kinds, check_like, decode
from tpinit.runtime.errors import CheckpointError
from tpinit.runtime.training.checkpoint_content import (
    COUNTERS,
    TrainedTensor,
    buffers,
    has_whole_states,
    is_whole_state,
    optimizer_groups,
    place_of,
    rank_place,
    trained_tensors,
)
from tpinit.runtime.training.master_copies import MASTER
from tpinit.runtime.training.optimizer_kinds import class_name
from tpinit.runtime.training.rng_state import read_rng_bytes, set_rng

if TYPE_CHECKING:
    from tpinit.runtime.training.engine import Engine

__all__ = ["EngineLoad", "LoadOptions"]

_KEPT_OPTIONS = ("params", "foreach", "fused", "capturable", "differentiable")  # how torch computes, not what
_MAX_RNG_BYTES = 1 << 20
_ADAM = frozenset({"step", "exp_avg", "exp_avg_sq"})
_FOREIGN_STATES = {optim.Adam: _ADAM, optim.AdamW: _ADAM, optim.SGD: frozenset({"momentum_buffer"})}
_log = logging.getLogger("tpinit")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What `load_checkpoint` was asked for."""

    strict: bool = True
    optimizer: bool = True
    scheduler: bool = True
    module_only: bool = False
    custom: Callable[..., Any] | None = None


@dataclass(slots=True)
class EngineLoad:
    """One load: `compare` changes nothing, `fill` reads the tensors, `apply` sets the rest and returns client_state."""

    engine: Engine
    opened: Opened
    options: LoadOptions
    targets: list[PlacedTensor] = field(default_factory=list)
    whole: dict[str, torch.Tensor] = field(default_factory=dict)
    states: list[tuple[TrainedTensor, dict[str, Any]]] = field(default_factory=list)
    stale_masters: list[TrainedTensor] = field(default_factory=list)
    rng: torch.Tensor | None = None
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def with_optimizer(self) -> bool:
        """Whether the optimizer's state is loaded."""
        return self.options.optimizer and not self.options.module_only and self.engine.optimizer is not None

    def compare(self) -> None:
        """Find all that is to be filled. Raises CheckpointError if the checkpoint does not fit the engine."""
        place, page = rank_place(self.engine), self.opened.manifest.page
        if page.get("weights_only") and not self.options.module_only:
            raise CheckpointError(
                f"{self.opened.folder} holds a converted model without states of an optimizer: pass "
                "load_module_only=True"
            )
        trained = trained_tensors(self.engine)
        self._compare_model(trained, place.tp_size)
        check_targets(self.opened, self.targets)
        try:
            self.values = {"client_state": decode(page["client_state"])}
            if self.with_optimizer:  # first: another optimizer is why its schedule does not fit
                self._compare_optimizer(trained, place.tp_size, page["optimizer"])
            if not self.options.module_only:
                self._compare_page(page)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{self.opened.folder}: the manifest can't be read: {type(error).__name__}: {error}"
            ) from error
        check_targets(self.opened, self.targets)

    def _compare_model(self, trained: list[TrainedTensor], tp_size: int) -> None:
        stored = {name for name in self.opened.manifest.tensors if name.startswith("model.")}
        wanted = [place_of(f"model.{one.record.name}", one.parameter, one.record, tp_size) for one in trained]
        wanted += [
            PlacedTensor(f"model.{name}", value, tuple(value.shape)) for name, value in buffers(self.engine.module)
        ]
        excluded = {f"model.{name}" for name in self.opened.manifest.page.get("excluded", [])}
        if self.options.custom is not None:
            self.whole = {
                name: torch.empty(
                    self.opened.manifest.tensors[name].shape, dtype=self.opened.manifest.tensors[name].dtype
                )
                for name in sorted(stored)
            }
            self.targets += [PlacedTensor(name, value, tuple(value.shape)) for name, value in self.whole.items()]
            self.stale_masters = [one for one in trained if one.master is not None]
            return
        unexpected = sorted(stored - {target.name for target in wanted})
        if self.options.strict and unexpected:
            raise CheckpointError(
                f"the checkpoint {self.opened.folder} is of another model: it has {unexpected[0]}"
                f"{f' and {len(unexpected) - 1} more' if len(unexpected) > 1 else ''}, which this model lacks; nothing "
                "was loaded"
            )
        skipped = (excluded if self.options.strict else {target.name for target in wanted}) - stored
        self.targets += [target for target in wanted if target.name not in skipped]
        for one in trained:
            if one.master is None or f"model.{one.record.name}" in skipped:
                continue
            name = f"master.{one.record.name}"
            if name in self.opened.manifest.tensors:
                self.targets.append(place_of(name, one.master, one.record, tp_size))
            else:
                self.stale_masters.append(one)

    def _compare_page(self, page: Mapping[str, Any]) -> None:
        engine, place = self.engine, rank_place(self.engine)
        self.values["counters"] = {name: _integer(page["counters"][name], name) for name in COUNTERS}
        if self.options.scheduler and hasattr(engine.lr_scheduler, "state_dict"):
            self.values["scheduler"] = self._schedule(engine.lr_scheduler, page["scheduler"])
        if page.get("converted"):
            _log.warning(
                "%s was converted: this run keeps its place in the data, its RNG states and its loss scale",
                self.opened.folder,
            )
            return
        self.values["scaler"] = {name: float(value) for name, value in page["scaler"].items()}
        self.values["calls"] = {name: _integer(page["calls"][name], name) for name in ("count", "first_seed")}
        if page["data"] is not None and engine.batches is not None:
            self.values["data"] = _position(page, engine.settings.batch.micro, place.replicas)
        names = [f"rng.{place.replica}.{place.tp_rank}", f"rng.{place.replica}.0"]
        if page["topology"] != {"tp_size": place.tp_size, "replicas": place.replicas}:
            names = names[1:]  # ranks of a TP group begin alike
        name = next((name for name in names if name in self.opened.manifest.tensors), None)
        stored = self.opened.manifest.tensors[name] if name is not None else None
        if name is None or stored is None:
            _log.warning("%s has no RNG state for replica %d: it keeps its own", self.opened.folder, place.replica)
        elif len(stored.shape) != 1 or stored.dtype != torch.uint8 or stored.shape[0] > _MAX_RNG_BYTES:
            raise CheckpointError(f"{self.opened.folder}: its RNG states are {stored.shape} of {stored.dtype}")
        else:
            self.rng = torch.empty(stored.shape, dtype=torch.uint8)
            self.targets.append(PlacedTensor(name, self.rng, stored.shape))

    def _schedule(self, scheduler: Any, page: Any) -> Any:
        """Return the state that the schedule is to load. Raises CheckpointError if there is none for it."""
        if page is None:
            raise CheckpointError(
                f"{self.opened.folder} has no state of a schedule, and this run has one: pass "
                "load_lr_scheduler_states=False, and set the schedule to the update at which the run goes on"
            )
        found, own, state = page["class"], class_name(scheduler), decode(page["state"])
        if found == FOREIGN:
            return check_schedule(scheduler.state_dict(), state, own)
        if found != own:
            raise CheckpointError(
                f"the checkpoint has the state of a {found}, and this run's schedule is a {own}: pass "
                "load_lr_scheduler_states=False to go on with a new schedule"
            )
        return check_own_schedule(scheduler, state, own)

    def _compare_optimizer(self, trained: list[TrainedTensor], tp_size: int, page: Any) -> None:
        optimizer = self.engine.optimizer
        assert optimizer is not None
        if page is None:
            raise CheckpointError(
                f"{self.opened.folder} was saved without an optimizer: pass load_optimizer_states=False"
            )
        if page["class"] == FOREIGN:
            _check_foreign(optimizer, self.opened.manifest.tensors)
        elif page["class"] != class_name(optimizer):
            raise CheckpointError(
                f"the checkpoint has the state of a {page['class']}, and this run's optimizer is a "
                f"{class_name(optimizer)}: pass load_optimizer_states=False to begin with an empty state"
            )
        own = [group["parameters"] for group in optimizer_groups(optimizer, trained)]
        if [group["parameters"] for group in page["groups"]] != own:
            raise CheckpointError(
                "the checkpoint's optimizer has other parameter groups than this run's: build the optimizer with the "
                "same groups, or pass load_optimizer_states=False"
            )
        groups = self.values["groups"] = [decode(group["options"]) for group in page["groups"]]
        for held, options in zip(optimizer.param_groups, groups, strict=True):
            check_kinds(held, options, "the optimizer's")
            for key in held.keys() & options.keys() - {*_KEPT_OPTIONS}:
                if held[key] is not None and options[key] is not None:
                    check_like(held[key], options[key], f"the optimizer's {key}")
        by_name = {one.record.name: one for one in trained if one.key is not None}
        entries: dict[str, dict[str, Any]] = {
            name: decode(values) for name, values in page["values"].items() if name in by_name
        }
        for name in self.opened.manifest.tensors:
            if name.startswith("optimizer."):
                _, key, parameter = name.split(".", 2)
                if parameter not in by_name:
                    raise CheckpointError(f"{self.opened.folder} has {name}, of no parameter of this optimizer")
                target = self._state_target(by_name[parameter], name, key, tp_size)
                entries.setdefault(parameter, {})[key] = target.tensor
                self.targets.append(target)
        self.states = [(one, entries.get(name, {})) for name, one in by_name.items()]

    def _state_target(self, one: TrainedTensor, name: str, key: str, tp_size: int) -> PlacedTensor:
        """Return the tensor to fill of one state: that which the optimizer has, if it fits, else a new one."""
        optimizer, record = self.engine.optimizer, one.record
        assert optimizer is not None
        stored = self.opened.manifest.tensors[name]
        fits, elements = stored.shape == tuple(record.shape), math.prod(stored.shape)
        whole = is_whole_state(record, tp_size, has_whole_states(self.engine), fits, elements)
        if whole is None:
            raise CheckpointError(
                f"{name} has shape {stored.shape}, and {record.name} {record.shape}: it can't be cut for this rank"
            )
        shape = stored.shape if whole else tuple(one.parameter.shape)
        device = one.parameter.device
        if key == "step" and not _on_device(optimizer, one):
            device = torch.device("cpu")
        held = one.entry(optimizer).get(key)
        if not isinstance(held, torch.Tensor) or (held.shape, held.dtype, held.device) != (shape, stored.dtype, device):
            held = torch.empty(shape, dtype=stored.dtype, device=device)
        return place_of(name, held, record, tp_size, whole)

    def fill(self) -> int:
        """Read all tensors from the files; return the number of bytes. Raises CheckpointError."""
        with torch.no_grad():
            size = fill(self.opened, self.targets, rank_place(self.engine).tp_rank)
            if self.options.custom is not None:
                source = {name.removeprefix("model."): value for name, value in self.whole.items()}
                self.options.custom(src=source, dst=self.engine.module)
                self.whole.clear()
            for one in self.stale_masters:
                assert one.master is not None
                one.master.copy_(one.parameter)
        return size

    def apply(self) -> dict[str, Any]:
        """Set what is not a tensor of the model, and return the client's state."""
        engine = self.engine
        if self.with_optimizer:
            assert engine.optimizer is not None
            _set_optimizer(engine.optimizer, self.values["groups"], self.states)
        if "counters" in self.values:
            for name, value in self.values["counters"].items():
                setattr(engine, name, value)
            engine.micro_steps -= engine.micro_steps % engine.settings.batch.accumulation
            engine._call_check.step = engine.global_steps
        if "scaler" in self.values:
            engine._scaler.load_state_dict(self.values["scaler"])
            engine._call_check.calls = self.values["calls"]["count"]
            engine._call_check._first_seed = self.values["calls"]["first_seed"]
        if "scheduler" in self.values:
            engine.lr_scheduler.load_state_dict(self.values["scheduler"])
        if "data" in self.values and engine.batches is not None:
            engine.batches.seek(*self.values["data"])
        engine.zero_grad()
        engine._awaits_step = False
        if self.rng is not None:
            set_rng(read_rng_bytes(self.rng), engine.device)  # last: a new iterator over the data draws a number
        client_state = self.values["client_state"]
        return client_state if isinstance(client_state, dict) else {}


def _set_optimizer(
    optimizer: Optimizer, groups: list[dict[str, Any]], states: list[tuple[TrainedTensor, dict[str, Any]]]
) -> None:
    for group, options in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: value for key, value in options.items() if key not in _KEPT_OPTIONS})
    for one, entry in states:
        assert one.key is not None
        if entry:
            masters = {MASTER: one.master} if one.master is not None else {}
            optimizer.state[one.key] = {**entry, **masters}
        else:
            optimizer.state.pop(one.key, None)


def _check_foreign(optimizer: Optimizer, stored: Iterable[str]) -> None:
    """Raise CheckpointError unless states without the name of a class are those that this optimizer has."""
    found = frozenset(name.split(".", 2)[1] for name in stored if name.startswith("optimizer."))
    legal = _FOREIGN_STATES.get(type(optimizer))
    if legal is not None and any(group.get("amsgrad") for group in optimizer.param_groups):
        legal = legal | {"max_exp_avg_sq"}
    if found and found != legal:
        raise CheckpointError(
            f"the converted checkpoint has the states {', '.join(sorted(found))}, and this run's optimizer is a "
            f"{class_name(optimizer)}: take the one that wrote them (torch's Adam, AdamW or SGD), or pass "
            "load_optimizer_states=False"
        )


def _on_device(optimizer: Optimizer, one: TrainedTensor) -> bool:
    """Return whether the optimizer counts the updates of a parameter on its device."""
    for group in optimizer.param_groups:
        if any(parameter is one.key for parameter in group["params"]):
            return bool(group.get("fused") or group.get("capturable"))
    return False


def _position(page: Mapping[str, Any], micro: int | None, replicas: int) -> tuple[int, int]:
    """Return the epoch and the micro batch at which this run goes on, where the micro batches may have other sizes."""
    epoch, index = _integer(page["data"]["epoch"], "epoch"), _integer(page["data"]["index"], "index")
    then = (page["batch"]["micro"] or 1) * _integer(page["topology"]["replicas"], "replicas")
    now = (micro or 1) * replicas
    if index * then % now:
        _log.warning(
            "the checkpoint was saved after %d samples of an epoch, and %d samples are read at once now: the last %d "
            "are read again",
            index * then, now, index * then % now,
        )  # fmt: skip
    return epoch, index * then // now


def _integer(value: Any, name: str) -> int:
    if type(value) is not int or not -1 <= value < 1 << 63:
        raise ValueError(f"{name} is {str(value)[:50]}")
    return value
