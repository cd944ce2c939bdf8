"""Observations of an engine from its tensors and its communication, not from what it reports about itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from tpinit.conformance.adapters.deepspeed.ranks.implementations import TrainingLibrary
from tpinit.conformance.adapters.deepspeed.ranks.model import LEARNING_RATE, Dense, batch

__all__ = ["averaging_group", "check_group", "numbers", "sharding_group", "shards"]

_COLUMN = "self_attn.q_proj.weight"
_ROW = "self_attn.o_proj.weight"
_DIFFERENT_STEPS = (0, 1)
_EQUAL_STEPS = (2, 3)
_SCALES = 8  # steps that a dynamic fp16 loss scale may skip before the first update


def _named(model: nn.Module, ending: str) -> nn.Parameter:
    return next(parameter for name, parameter in model.named_parameters() if name.endswith(ending))


def shards(model: nn.Module, full: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return how the parameters are sharded: the degree, which slice this rank holds, and their dtypes.

    `slice` is the index of the slice of the original weight that the column-parallel weight equals, None if it equals
    none; `foreign` names the parameters that equal no slice of their original weight.
    """
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    foreign, positions, degree = [], {}, 1
    for name, parameter in model.named_parameters():
        found = _slices(parameter.detach(), full[name])
        if not found:
            foreign.append(name)
        positions[name] = found
        if name.endswith(_COLUMN):
            degree = full[name].shape[0] // max(parameter.shape[0], 1)
    column = next(found for name, found in positions.items() if name.endswith(_COLUMN))
    return {"degree": degree, "slice": column[0] if column else None, "dtypes": dtypes, "foreign": foreign}


def _slices(local: torch.Tensor, full: torch.Tensor) -> list[int]:
    if local.shape == full.shape:
        return [0] if _same(local, full) else []
    if local.dim() != full.dim() or not local.numel():
        return []
    dims = [dim for dim in range(local.dim()) if local.shape[dim] != full.shape[dim]]
    if len(dims) != 1:
        return []
    size = local.shape[dims[0]]
    count = full.shape[dims[0]] // size
    return [index for index in range(count) if _same(local, full.narrow(dims[0], index * size, size))]


def _same(local: torch.Tensor, full: torch.Tensor) -> bool:
    return bool(torch.equal(local, full.to(local.dtype)))


def sharding_group(engine: Any, world: int, rank: int) -> list[int]:
    """Return the ranks whose weights affect this rank's output: each rank in turn changes its row-parallel weight."""
    weight = _named(engine.module, _ROW)
    inputs = {"input_ids": batch(99, 0)["input_ids"]}
    with torch.no_grad():
        before = engine.module(**inputs).logits.float().clone()
        group = []
        for changed_rank in range(world):
            kept = weight.detach().clone()
            if changed_rank == rank:
                weight.add_(3.0)
            if not torch.equal(engine.module(**inputs).logits.float(), before):
                group.append(changed_rank)
            weight.copy_(kept)
    return group


def averaging_group(engine: Any, world: int, rank: int, library: TrainingLibrary) -> dict[str, Any]:
    """Return the ranks whose gradients are averaged into this rank's sharded weight, and the divisor of the average.

    On each rank the gradient is 1 at the index of the rank and 0 elsewhere: a hook replaces it, or the loss is the sum
    of these elements. The update then subtracts 1 / divisor (times the learning rate) at the index of every rank
    that took part.
    """
    weight = _named(engine.module, _COLUMN)

    def marked(gradient: torch.Tensor) -> torch.Tensor:
        mark = torch.zeros_like(gradient)
        mark.view(-1)[rank] = library.loss_scale(engine)
        return mark

    handle = weight.register_hook(marked) if library.hooks_gradients else None  # type: ignore[no-untyped-call]  # torch leaves Tensor.register_hook untyped
    ranks: list[int] = []
    for _ in range(_SCALES):
        before = weight.detach().float().flatten()[:world].clone()
        if handle is not None:
            _train_step(engine, batch(98, 0), int(engine.gradient_accumulation_steps()))
        else:
            _train_element(engine, weight, rank, int(engine.gradient_accumulation_steps()))
        after = _named(engine.module, _COLUMN).detach().float().flatten()[:world]
        shares = ((before - after) / LEARNING_RATE).tolist()
        ranks = [place for place, share in enumerate(shares) if abs(share) > 0.05]
        if ranks:
            break
    if handle is not None:
        handle.remove()
    return {"ranks": ranks, "divisor": round(1 / shares[ranks[0]], 2) if ranks else None}


def _train_element(engine: Any, weight: nn.Parameter, rank: int, accumulation: int) -> None:
    """Train on one element of a weight, so that each micro batch adds 1 to its gradient."""
    name = next(name for name, parameter in engine.module.named_parameters() if parameter is weight)
    mark = torch.zeros_like(weight, dtype=torch.float32)
    mark.view(-1)[rank] = accumulation
    for _ in range(accumulation):
        total = engine.sum_over_parameters({name: weight.float() * mark})
        engine.backward(total - total.detach())  # the loss is 0 on all ranks: those of a TP group must be equal
        engine.step()


def _train_step(engine: Any, inputs: dict[str, torch.Tensor], accumulation: int = 1) -> float:
    for _ in range(accumulation):
        loss = engine(**inputs).loss
        engine.backward(loss)
        engine.step()
    return float(loss)


def check_group(check: Callable[[dict[str, Any]], None], world: int, rank: int) -> list[int]:
    """Return the ranks in this rank's input check: those whose different input makes the check raise here."""

    def refuses(odd: int) -> bool:
        try:
            check({"input_ids": batch(97, int(rank == odd))["input_ids"]})
        except Exception:  # any exception is a refusal
            return True
        return False

    return [odd for odd in range(world) if refuses(odd)]


def numbers(engine: Any, dense: Dense, data: Sequence[int], rank: int, position: int) -> dict[str, Any]:
    """Train four updates beside the unsharded model, two on different data per TP group and two on equal data.

    `data` holds the data index of every rank (equal within a TP group); `position` is this rank's index in its TP
    group. Returns for each update this rank's loss and the expected one, the largest difference of a weight from its
    slice of the unsharded model, and the name of that weight.
    """
    updates = []
    accumulation = int(engine.gradient_accumulation_steps())
    for step in (*_DIFFERENT_STEPS, *_EQUAL_STEPS):
        indices = list(data) if step in _DIFFERENT_STEPS else [0] * len(data)
        inputs = batch(step, indices[rank])
        expected = dense.loss(inputs)
        loss = _train_step(engine, inputs, accumulation)
        dense.step([batch(step, index) for index in sorted(set(indices))])
        where, worst = _worst(engine.module, dense, position)
        updates.append(
            {
                "data": "different" if step in _DIFFERENT_STEPS else "equal",
                "loss": loss,
                "expected_loss": expected,
                "weights_off_by": worst,
                "worst_weight": where,
            }
        )
    skipped = int(getattr(engine, "skipped_steps", 0))
    # A dynamic loss scale may skip updates; then the weights can't be compared with the unsharded model's.
    return {"skipped_updates": skipped} if skipped else {"updates": updates}


def _worst(model: nn.Module, dense: Dense, position: int) -> tuple[str, float]:
    """Return the name of the parameter with the largest error from its unsharded slice, and the error."""
    off = {}
    unsharded = dense.weights()
    for name, parameter in model.named_parameters():
        full, local = unsharded[name], parameter.detach().float()
        for dim in range(local.dim()):
            if local.shape[dim] != full.shape[dim]:
                count = full.shape[dim] // local.shape[dim]
                full = full.narrow(dim, position % count * local.shape[dim], local.shape[dim])
        off[name] = float((local - full).abs().max())
    where = max(off, key=lambda name: off[name])
    return where, off[where]
