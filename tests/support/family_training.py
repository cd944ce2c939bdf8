"""A family trained sharded and whole on the same data, by every rank of a world, and how far the two are apart."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import initialize
from tpinit.runtime.slicing import assemble

from families import catalogue
from support.collectives import CollectiveCounter

SGD = {"type": "SGD", "params": {"lr": 0.05, "momentum": 0.9}}


class Together(dict[str, Any]):
    """Tensors, or None, by name, that are sent as one: to pickle each for itself takes longer than to train it."""

    def __reduce__(self) -> tuple[Any, ...]:
        told = [(name, None if one is None else (one.shape, one.dtype)) for name, one in self.items()]
        there = [one.detach().reshape(-1) for one in self.values() if one is not None]
        return _opened, (told, torch.cat(there) if there else torch.empty(0))


def _opened(told: list[tuple[str, Any]], flat: torch.Tensor) -> Together:
    found, begin = Together(), 0
    for name, kind in told:
        found[name] = None
        if kind is not None:
            shape, dtype = kind
            found[name] = flat[begin : begin + shape.numel()].view(shape).to(dtype)
            begin += shape.numel()
    return found


def family(
    rank: int,
    name: str,
    tp: int,
    steps: int = 5,
    causal: bool = False,
    double: bool = False,
    clipping: float = 0.5,
    initialize_with: dict[str, Any] | None = None,
    section: dict[str, Any] | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Train a family sharded and whole on the same data; return how far they are apart, and what was sent."""
    model = catalogue.build_causal(name, **overrides) if causal else catalogue.build(name, **overrides)
    model.train()
    if double:  # where fp32 is too coarse to tell noise from a mistake
        model.double()
    reference = copy.deepcopy(model)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": clipping,
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": tp, **(section or {})},
    }
    engine, _, _, _ = initialize(model=model, config=config, **(initialize_with or {}))
    updates = torch.optim.SGD([one for one in reference.parameters() if one.requires_grad], **SGD["params"])
    parts, mine = dist.get_world_size() // tp, engine.groups.data_index
    worst = {"loss": 0.0, "gradient": 0.0, "norm": 0.0, "weight": 0.0}
    where = {}
    counter = CollectiveCounter()
    for step in range(steps):
        batch = family_batch(name, reference, step, 2 * parts, causal)
        if double:
            floats = {
                key: one for key, one in batch.items() if isinstance(one, torch.Tensor) and one.is_floating_point()
            }
            batch |= {key: one.double() for key, one in floats.items()}
        part = {
            key: value[2 * mine : 2 * mine + 2] if isinstance(value, torch.Tensor) and value.dim() else value
            for key, value in batch.items()
        }
        with counter.on():
            loss = family_loss(name, engine, part, causal)
            engine.backward(loss)
        total = loss.detach().clone()
        dist.all_reduce(total)
        # One rank trains the whole model, and tells: on a machine of few cores, the others would be in its way.
        told = [_whole_step(name, reference, updates, batch, causal, clipping) if rank == 0 else None]
        dist.broadcast_object_list(told, src=0)
        whole = told[0]
        _worst(worst, where, "loss", abs(float(total) / dist.get_world_size() / whole["loss"] - 1), "")
        for parameter, apart in difference_by_parameter(engine, whole["grad"], "grad").items():
            _worst(worst, where, "gradient", apart, parameter)
        engine.step()
        _worst(worst, where, "norm", abs(engine.get_global_grad_norm() / whole["norm"] - 1), "")
        for parameter, apart in difference_by_parameter(engine, whole["data"], "data").items():
            _worst(worst, where, "weight", apart, parameter)
    records = engine.plan.parameters
    return {
        **worst,
        "where": where,
        "cut": sum(record.dim is not None for record in records),
        "local_elements": sum(one.numel() for one in engine.module.parameters()),
        "elements": sum(one.numel() for one in reference.parameters()),
        "calls": counter.calls,
        "notes": engine.plan.notes,
        "source": engine.plan.source,
    }


def family_batch(name: str, model: Any, seed: int, rows: int, causal: bool) -> dict[str, Any]:
    return catalogue.batch_causal(name, model, seed) if causal else catalogue.batch(name, model, seed, rows=rows)


def family_loss(name: str, model: Any, batch: dict[str, Any], causal: bool) -> torch.Tensor:
    return catalogue.loss_causal(model, batch) if causal else catalogue.loss(name, model, batch)


def _whole_step(
    name: str, model: Any, updates: torch.optim.Optimizer, batch: dict[str, Any], causal: bool, clipping: float
) -> dict[str, Any]:
    """Train the whole model by one step; return its loss, gradients and their norm before clipping, and new weights."""
    loss = family_loss(name, model, batch, causal)
    loss.backward()
    told = {
        "loss": float(loss.detach()),
        "grad": Together({key: _kept(one) for key, one in tensors_of(model, "grad").items()}),
    }
    told["norm"] = float(torch.nn.utils.clip_grad_norm_(model.parameters(), clipping or float("inf")))
    updates.step()
    updates.zero_grad()
    return told | {"data": tensors_of(model, "data")}


def _kept(gradient: torch.Tensor | None) -> torch.Tensor | None:
    return None if gradient is None else gradient.clone()


def tensors_of(model: torch.nn.Module, what: str) -> Together:
    return Together({name: getattr(one, what) for name, one in model.named_parameters()})


def _worst(worst: dict[str, float], where: dict[str, Any], what: str, apart: float, name: str) -> None:
    if worst[what] == worst[what] and not apart <= worst[what]:  # what is no number stays
        worst[what], where[what] = apart, name


def difference_by_parameter(engine: Any, expected: Mapping[str, torch.Tensor | None], what: str) -> dict[str, float]:
    """Return for each parameter how far it is from the whole one, beside its own norm and a part of the largest."""
    actual = gathered(engine, tensors_of(engine.module, what))
    largest = max(float(one.norm()) for one in expected.values() if one is not None)
    found = {}
    for name, got in actual.items():
        right = expected[name]
        if right is None or got is None:
            found[name] = 0.0 if got is None or not float(got.norm()) else float("inf")
            continue
        found[name] = float((got - right).norm()) / (float(right.norm()) + 1e-2 * largest)
    return found


def gathered(engine: Any, held: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
    """Put every tensor together from all ranks of the group, however unevenly it is cut; what is whole is this rank's.

    One exchange for all of them: with one for each, most of the time of a test goes there.
    """
    side, records = engine.groups.tp, engine.plan.parameters
    if side.group is None:
        return {record.name: held[record.name] for record in records}
    of_ranks: list[Any] = [None] * side.size
    cut = Together({record.name: held[record.name] for record in records if record.dim is not None})
    dist.all_gather_object(of_ranks, cut, group=side.group)
    found = {}
    for record in records:
        ones = [held[record.name]] if record.dim is None else [one[record.name] for one in of_ranks]
        found[record.name] = None if any(one is None for one in ones) else assemble(ones, record)
    return found
