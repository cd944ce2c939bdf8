"""What a checkpoint of an engine holds: its tensors by name and place, and everything else as JSON data.

Names: `model.NAME` for parameters and buffers, `master.NAME` for fp32 master copies, `optimizer.KEY.NAME` for states of
the optimizer, `rng.REPLICA.TP_RANK` for the RNG states of a rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from tpinit.reference.explain import to_json
from tpinit.runtime.checkpoint.places import PlacedTensor, RankPlace
from tpinit.runtime.checkpoint.values import encode
from tpinit.runtime.errors import CheckpointError, UnsupportedError
from tpinit.runtime.planning.schema import ParameterPlan
from tpinit.runtime.training.master_copies import MASTER
from tpinit.runtime.training.optimizer_kinds import OptimizerKind, class_name
from tpinit.runtime.training.param_state import ParamState
from tpinit.runtime.training.rng_state import rng_bytes

if TYPE_CHECKING:
    from tpinit.runtime.training.engine import Engine

__all__ = [
    "TrainedTensor",
    "buffers",
    "content_page",
    "content_tensors",
    "has_whole_states",
    "is_whole_state",
    "optimizer_groups",
    "place_of",
    "rank_place",
    "trained_tensors",
]

COUNTERS = ("micro_steps", "global_steps", "skipped_steps", "global_samples")


@dataclass(frozen=True, slots=True)
class TrainedTensor:
    """One parameter of the model, its fp32 master copy, and its entry in the optimizer's state.

    `master` is None without one. `key` is the parameter under which the optimizer has its state; None if the optimizer
    does not update it.
    """

    record: ParameterPlan
    parameter: nn.Parameter
    master: torch.Tensor | None
    key: nn.Parameter | None

    def entry(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return its entry in the optimizer's state, without the master copy; empty before the first update."""
        found: Mapping[str, Any] = optimizer.state.get(self.key, {}) if self.key is not None else {}
        return {key: value for key, value in found.items() if key != MASTER}


def trained_tensors(engine: Engine) -> list[TrainedTensor]:
    """Return every parameter of the plan, in its order."""
    optimizer = engine.optimizer
    held = {id(one): one for group in optimizer.param_groups for one in group["params"]} if optimizer else {}
    return [_trained(state, held) for state in engine._param_states]


def _trained(state: ParamState, held: Mapping[int, nn.Parameter]) -> TrainedTensor:
    master = state.target.detach() if state.has_master else None
    return TrainedTensor(state.record, state.parameter, master, held.get(id(state.parameter)))


def has_whole_states(engine: Engine) -> bool:
    """Return whether every rank has the optimizer's states of whole tensors."""
    step = engine._optimizer_step
    return step is not None and step.kind is OptimizerKind.WHOLE_TENSORS


def rank_place(engine: Engine) -> RankPlace:
    """Return this rank's place in the run. Raises UnsupportedError if DP groups hold different models (row 2)."""
    groups, world = engine.groups, engine.decision.world_size
    if groups.tp.size * groups.dp.size != world:
        raise UnsupportedError(
            f"a checkpoint of {world} ranks in DP groups of {groups.dp.size} and TP groups of {groups.tp.size}: "
            "another kind of model parallelism gave the groups different models, and tpinit can't name their parts"
        )
    return RankPlace(groups.tp.size, groups.tp.position, groups.dp.size, groups.data_index)


def place_of(name: str, tensor: torch.Tensor, record: ParameterPlan, tp_size: int, whole: bool = False) -> PlacedTensor:
    """Return a tensor that is cut as its parameter, or that every rank holds whole."""
    if whole or record.dim is None:
        return PlacedTensor(name, tensor.detach(), tuple(tensor.shape))
    pieces = tuple(record.pieces_of(tp_size, rank) for rank in range(tp_size))
    return PlacedTensor(name, tensor.detach(), tuple(record.shape), record.dim, pieces)


def buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the names and values of the model's buffers that its state dict has."""
    for name, value in nn.Module.state_dict(model, keep_vars=True).items():
        if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
            yield name, value


def content_tensors(engine: Engine, exclude_frozen: bool) -> list[PlacedTensor]:
    """Return every tensor of a checkpoint. Raises CheckpointError for an optimizer state that has no place."""
    place = rank_place(engine)
    found = [PlacedTensor(f"model.{name}", value, tuple(value.shape)) for name, value in buffers(engine.module)]
    for trained in trained_tensors(engine):
        name, record = trained.record.name, trained.record
        if not exclude_frozen or trained.parameter.requires_grad:
            found.append(place_of(f"model.{name}", trained.parameter, record, place.tp_size))
        if trained.master is not None:
            found.append(place_of(f"master.{name}", trained.master, record, place.tp_size))
        if engine.optimizer is not None:
            found += _state_tensors(engine.optimizer, trained, place.tp_size, has_whole_states(engine))
    state = rng_bytes(engine.device)
    found.append(PlacedTensor(f"rng.{place.replica}.{place.tp_rank}", state, tuple(state.shape), single=True))
    return found


def is_whole_state(record: ParameterPlan, tp_size: int, whole_states: bool, fits: bool, elements: int) -> bool | None:
    """Return whether every rank holds a whole tensor of an optimizer's state; False: it is cut as its parameter.

    `fits`: it has the shape of the parameter. Returns None for a tensor that has no place in the unsharded state.
    """
    if whole_states or tp_size == 1 or record.dim is None:
        return True
    if fits:
        return False
    return True if elements <= 1 else None


def _state_tensors(
    optimizer: Optimizer, trained: TrainedTensor, tp_size: int, whole_states: bool
) -> Iterator[PlacedTensor]:
    record = trained.record
    for key, value in sorted(trained.entry(optimizer).items()):  # one order on all ranks
        if not isinstance(value, torch.Tensor):
            continue
        whole = is_whole_state(record, tp_size, whole_states, value.shape == trained.parameter.shape, value.numel())
        if whole is None:
            raise CheckpointError(
                f"the optimizer's {key} of {record.name} has shape {tuple(value.shape)}, neither a number nor the "
                "parameter's shape: its place in the unsharded state is unknown"
            )
        yield place_of(f"optimizer.{key}.{record.name}", value, record, tp_size, whole)


def content_page(engine: Engine, client_state: Mapping[str, Any] | None, exclude_frozen: bool) -> dict[str, Any]:
    """Return the JSON data of a checkpoint. Raises CheckpointError for a value that it can't hold."""
    scheduler, check, trained = engine.lr_scheduler, engine._call_check, trained_tensors(engine)
    frozen = [one.record.name for one in trained if not one.parameter.requires_grad]
    return {
        "topology": {"tp_size": engine.groups.tp.size, "replicas": engine.groups.dp.size},
        "counters": {name: getattr(engine, name) for name in COUNTERS},
        "batch": {"micro": engine.settings.batch.micro, "accumulation": engine.settings.batch.accumulation},
        "scaler": engine._scaler.state_dict(),
        "calls": {"count": check.calls, "first_seed": check._first_seed},
        "data": engine.batches.state_dict() if engine.batches is not None else None,
        "optimizer": _optimizer_page(engine.optimizer, trained) if engine.optimizer is not None else None,
        "scheduler": _scheduler_page(scheduler) if hasattr(scheduler, "state_dict") else None,
        "excluded": frozen if exclude_frozen else [],
        "client_state": encode(_client_state(client_state), "client_state"),
        "decision": to_json(engine.decision),
        "plan": engine.plan.to_json(),
    }


def _client_state(given: object) -> dict[Any, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise CheckpointError(f"client_state is a {type(given).__name__}, and must be a dict")
    return dict(given or {})


def _scheduler_page(scheduler: Any) -> dict[str, Any]:
    return {"class": class_name(scheduler), "state": encode(scheduler.state_dict(), "lr_scheduler.state_dict()")}


def _optimizer_page(optimizer: Optimizer, trained: list[TrainedTensor]) -> dict[str, Any]:
    values = {}
    for one in trained:
        entry = one.entry(optimizer)
        plain = {key: value for key, value in entry.items() if not isinstance(value, torch.Tensor)}
        values[one.record.name] = encode(plain, f"the optimizer's state of {one.record.name}")
    return {"class": class_name(optimizer), "groups": optimizer_groups(optimizer, trained), "values": values}


def optimizer_groups(optimizer: Optimizer, trained: list[TrainedTensor]) -> list[dict[str, Any]]:
    """Return the names and the options of each parameter group. Raises CheckpointError for a foreign parameter."""
    names = {id(one.key): one.record.name for one in trained if one.key is not None}
    groups = []
    for index, group in enumerate(optimizer.param_groups):
        if any(id(parameter) not in names for parameter in group["params"]):
            raise CheckpointError(f"group {index} of the optimizer holds a tensor that is no parameter of the model")
        options = {key: value for key, value in group.items() if key != "params"}
        groups.append(
            {
                "parameters": [names[id(parameter)] for parameter in group["params"]],
                "options": encode(options, f"optimizer.param_groups[{index}]"),
            }
        )
    return groups
