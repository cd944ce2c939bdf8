"""A family's small model trained sharded and unsharded on the same data, and how far the two are apart."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tpinit.runtime import initialize
from tpinit.runtime.slicing import assemble, local_part

from families import catalogue
from support.collectives import CollectiveCounter

SGD = {"type": "SGD", "params": {"lr": 0.05, "momentum": 0.9}}
STEPS = 3  # the first makes the momentum, the second reads it, and the third does nothing that the second did not
Batch = dict[str, Any]
BatchOf = Callable[[str, nn.Module, int, int, bool], Batch]
LossOf = Callable[[str, Any, Batch, bool], torch.Tensor]


class PackedTensors(dict[str, Any]):
    """Tensors, or None, by name, that are pickled as one tensor: one by one takes longer than to train them."""

    def __reduce__(self) -> tuple[Any, ...]:
        kinds = [(name, None if tensor is None else (tensor.shape, tensor.dtype)) for name, tensor in self.items()]
        flat = [tensor.detach().reshape(-1) for tensor in self.values() if tensor is not None]
        return _unpacked, (kinds, torch.cat(flat) if flat else torch.empty(0))


def _unpacked(kinds: list[tuple[str, Any]], flat: torch.Tensor) -> PackedTensors:
    found, begin = PackedTensors(), 0
    for name, kind in kinds:
        found[name] = None
        if kind is not None:
            shape, dtype = kind
            found[name] = flat[begin : begin + shape.numel()].view(shape).to(dtype)
            begin += shape.numel()
    return found


@dataclass
class Worst:
    """The largest relative difference from the unsharded run of each measure, and the parameter that has it."""

    measures: dict[str, float] = field(
        default_factory=lambda: {"loss": 0.0, "gradient": 0.0, "norm": 0.0, "weight": 0.0}
    )
    where: dict[str, str] = field(default_factory=dict)

    def add(self, measure: str, difference: float, parameter: str = "") -> None:
        """Keep a difference if it is larger than that before; a NaN is larger than any number."""
        before = self.measures[measure]
        if before == before and not difference <= before:
            self.measures[measure], self.where[measure] = difference, parameter

    def add_all(self, measure: str, differences: Mapping[str, float]) -> None:
        for parameter, difference in differences.items():
            self.add(measure, difference, parameter)


@functools.cache
def _pristine(name: str, causal: bool, overrides: str) -> nn.Module:
    settings = json.loads(overrides)
    return catalogue.build_causal(name, **settings) if causal else catalogue.build(name, **settings)


def small_model(name: str, causal: bool = False, **overrides: Any) -> nn.Module:
    """Return a copy of the family's small model in training mode; a process builds it once for the same overrides."""
    return copy.deepcopy(_pristine(name, causal, json.dumps(overrides))).train()


def family_batch(name: str, model: Any, seed: int, rows: int, causal: bool) -> Batch:
    return catalogue.batch_causal(name, model, seed) if causal else catalogue.batch(name, model, seed, rows=rows)


def family_loss(name: str, model: Any, batch: Batch, causal: bool) -> torch.Tensor:
    return catalogue.loss_causal(model, batch) if causal else catalogue.loss(name, model, batch)


def train_family(
    rank: int, name: str, tp: int, causal: bool = False, double: bool = False, steps: int = STEPS, **more: Any
) -> dict[str, Any]:
    """Train a family's small model; see `train_beside_whole`. What else is given overrides the model's config.

    `double` trains in fp64: for models whose gradients are too small for fp32 to tell noise from a mistake.
    """
    keys = ("clipping", "initialize_with", "section", "batch_of", "loss_of")
    run = {key: more.pop(key) for key in keys if key in more}
    model = small_model(name, causal, **more)
    if double:
        model.double()
    return train_beside_whole(rank, model, name, tp, causal=causal, steps=steps, **run)


def train_beside_whole(
    rank: int,
    model: nn.Module,
    name: str,
    tp: int,
    causal: bool = False,
    steps: int = STEPS,
    clipping: float = 0.5,
    initialize_with: dict[str, Any] | None = None,
    section: dict[str, Any] | None = None,
    batch_of: BatchOf = family_batch,
    loss_of: LossOf = family_loss,
) -> dict[str, Any]:
    """Train a model sharded on all ranks and unsharded on rank 0, on the same data.

    Returns the largest relative differences of the loss, the gradients, their norm and the weights in any step, with
    the parameters that have them; how much of the model is sharded; and the collectives of the forward and backward.
    """
    whole = copy.deepcopy(model)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": clipping,
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": tp, **(section or {})},
    }
    engine, _, _, _ = initialize(model=model, config=config, **(initialize_with or {}))
    updates = torch.optim.SGD([one for one in whole.parameters() if one.requires_grad], **SGD["params"])
    replicas, world = dist.get_world_size() // tp, dist.get_world_size()
    dtype = next(whole.parameters()).dtype
    worst, counter = Worst(), CollectiveCounter()
    for step in range(steps):
        batch = in_dtype(batch_of(name, whole, step, 2 * replicas, causal), dtype)
        with counter.on():
            loss = loss_of(name, engine, rows_of(batch, engine.groups.data_index), causal)
            engine.backward(loss)
        total = loss.detach().clone()
        dist.all_reduce(total)
        # Rank 0 alone trains the unsharded model and sends the result: with few cores the others would only wait.
        whole_loss = functools.partial(loss_of, name, whole, batch, causal)
        sent = [whole_step(whole_loss, whole, updates, clipping) if rank == 0 else None]
        dist.broadcast_object_list(sent, src=0)
        expected: Any = sent[0]
        worst.add("loss", abs(float(total) / world / expected["loss"] - 1))
        worst.add_all("gradient", difference_by_parameter(engine, expected["grad"], "grad"))
        engine.step()
        worst.add("norm", abs(engine.get_global_grad_norm() / expected["norm"] - 1))
        worst.add_all("weight", difference_by_parameter(engine, expected["data"], "data"))
    worst.add_all("weight", assembled_difference(engine, expected["data"]))
    return {**worst.measures, "where": worst.where, "calls": counter.calls, **described(engine, whole)}


def described(engine: Any, whole: nn.Module) -> dict[str, Any]:
    """Return how many parameters are sharded, how many values this rank and the model hold, and the plan's notes."""
    return {
        "cut": sum(record.dim is not None for record in engine.plan.parameters),
        "local_elements": sum(one.numel() for one in engine.module.parameters()),
        "elements": sum(one.numel() for one in whole.parameters()),
        "notes": engine.plan.notes,
        "source": engine.plan.source,
    }


def in_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    """Return a batch whose floating-point tensors have `dtype`."""
    return {
        key: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in batch.items()
    }


def rows_of(batch: Batch, replica: int) -> Batch:
    """Return the two rows of a batch that one data-parallel replica trains on; what has no rows is for all of them."""
    return {
        key: value[2 * replica : 2 * replica + 2] if isinstance(value, torch.Tensor) and value.dim() else value
        for key, value in batch.items()
    }


def whole_step(
    loss_of: Callable[[], torch.Tensor], whole: nn.Module, updates: torch.optim.Optimizer, clipping: float
) -> dict[str, Any]:
    """Train the unsharded model by one step; return its loss, gradients, norm before clipping, and new weights."""
    loss = loss_of()
    loss.backward()
    gradients = {key: None if one is None else one.clone() for key, one in tensors_of(whole, "grad").items()}
    norm = float(torch.nn.utils.clip_grad_norm_(whole.parameters(), clipping or float("inf")))
    updates.step()
    updates.zero_grad()
    return {
        "loss": float(loss.detach()),
        "grad": PackedTensors(gradients),
        "norm": norm,
        "data": tensors_of(whole, "data"),
    }


def tensors_of(model: nn.Module, what: str) -> PackedTensors:
    """Return `what` ("data" or "grad") of every parameter by name; a gradient may be None."""
    held = {name: getattr(one, what) for name, one in model.named_parameters()}
    return PackedTensors({name: None if one is None else one.as_subclass(torch.Tensor) for name, one in held.items()})


def difference_by_parameter(engine: Any, expected: Mapping[str, torch.Tensor | None], what: str) -> dict[str, float]:
    """Return how far each parameter's `what` is from the unsharded one, summed over the shards of all ranks.

    Every rank compares its own shard with the slice that the plan gives it; the sum of the squares is the TP group's.
    The difference is relative to the norm of the unsharded tensor plus a hundredth of the largest norm of all.
    """
    group, records, held = engine.groups.tp, engine.plan.parameters, tensors_of(engine.module, what)
    squares = [_square(held[record.name], expected[record.name], record, group) for record in records]
    total = torch.tensor(squares, dtype=torch.float64)
    if group.group is not None:
        dist.all_reduce(total, group=group.group)
        replicated = torch.tensor([record.dim is None for record in records])
        total[replicated] = torch.tensor(squares, dtype=torch.float64)[replicated]
    return _relative([record.name for record in records], total.sqrt().tolist(), expected)


def _square(held: torch.Tensor | None, expected: torch.Tensor | None, record: Any, group: Any) -> float:
    """Return the squared distance of this rank's shard from its slice; a missing gradient counts as zeros."""
    if expected is None:
        return float("inf") if held is not None and bool(held.any()) else 0.0
    right = local_part(expected, record, group.size, group.position)
    distance = right if held is None else held - right
    return float(distance.double().square().sum())


def assembled_difference(engine: Any, expected: Mapping[str, torch.Tensor | None]) -> dict[str, float]:
    """Return how far the weights, gathered and assembled from the shards of all ranks, are from the unsharded ones."""
    weights = gathered(engine, tensors_of(engine.module, "data"))
    distances = [float((one - expected[name]).norm()) for name, one in weights.items()]  # type: ignore[operator]  # no None among weights
    return _relative(list(weights), distances, expected)


def _relative(
    names: list[str], distances: list[float], expected: Mapping[str, torch.Tensor | None]
) -> dict[str, float]:
    norms = {name: 0.0 if expected[name] is None else float(expected[name].norm()) for name in names}  # type: ignore[union-attr]  # not None
    largest = max(norms.values())
    return {name: distance / (norms[name] + 1e-2 * largest) for name, distance in zip(names, distances, strict=True)}


def gathered(engine: Any, held: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
    """Assemble every sharded tensor from all ranks of the TP group, however uneven the shards; keep replicated ones.

    One exchange carries all tensors: with one exchange each, most of the time of a test would go there.
    """
    group, records = engine.groups.tp, engine.plan.parameters
    if group.group is None:
        return {record.name: held[record.name] for record in records}
    of_ranks: list[Any] = [None] * group.size
    shards = PackedTensors({record.name: held[record.name] for record in records if record.dim is not None})
    dist.all_gather_object(of_ranks, shards, group=group.group)
    found = {}
    for record in records:
        parts = [held[record.name]] if record.dim is None else [shard[record.name] for shard in of_ranks]
        found[record.name] = None if any(part is None for part in parts) else assemble(parts, record)
    return found
