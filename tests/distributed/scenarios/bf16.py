"""Training in bf16, where no two orders of summation agree: how far ours is from the whole model, and may be.

The unsharded model is trained too with its sums taken in parts, each rounded to bf16, as a sharded one has to: of the
input features of row layers forward, and of the output features of column layers backward. How far these runs are
from the unsharded one, in which nothing is in parts, is the noise that ours is held to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import initialize
from tpinit.runtime.planning.analysis.linears import find_linears
from tpinit.runtime.planning.partition.experts import fit_experts
from tpinit.runtime.planning.schema import LayerKind, Plan
from tpinit.runtime.slicing import take_pieces

from families import catalogue
from support.family_training import SGD, PackedTensors, gathered
from support.own_checks import switch_off

CLIPPING = 0.5
ROWS = (LayerKind.ROW, LayerKind.ROW_SPLIT)
COLUMNS = (LayerKind.COLUMN, LayerKind.COLUMN_GATHER, LayerKind.HEAD)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step showed: its loss, the gradients and their norm before clipping, and the weights after it.

    `resolution` is the relative distance of two neighbours in the dtype of the loss.
    """

    loss: float
    resolution: float
    gradients: PackedTensors
    norm: float
    weights: PackedTensors


def train_in_bf16(rank: int, name: str, steps: int = 5, break_with: str = "") -> dict[str, Any]:
    """Train a family in bf16: sharded, whole, and whole with its sums in other orders; return how far they are apart.

    `break_with` breaks the plan: "sum" leaves out the sum of one row layer, "entry" the sum of the gradients of one
    tensor that enters column layers.
    """
    tp = dist.get_world_size()
    model = catalogue.build(name).train()
    whole = copy.deepcopy(model)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": CLIPPING,
        "optimizer": SGD,
        "bf16": {"enabled": True},
        "tensor_parallel": {"autotp_size": tp},
    }
    with _broken(break_with):
        engine, _, _, _ = initialize(model=model, config=config)
    if break_with:
        switch_off(engine)
    batches = [_batch(name, whole, step) for step in range(steps)]
    ours = [_sharded_step(name, engine, batch) for batch in batches]
    # The orders are shared out among the ranks: all train the same model on the same data.
    orders = (1, *_orders(tp))
    mine = {parts: _whole_steps(name, whole, engine.plan, parts, batches) for parts in orders[rank::tp]}
    found: list[Any] = [None] * tp
    dist.all_gather_object(found, mine)
    runs = {parts: run for one in found for parts, run in one.items()}
    plain = runs.pop(1)
    return {
        "ours": _distances(ours, plain),
        "noise": {parts: _distances(run, plain) for parts, run in runs.items()},
        "resolution": plain[0].resolution,
    }


def _orders(tp: int) -> tuple[int, ...]:
    """Return in how many parts the unsharded sums are taken: as many as there are ranks, and others."""
    return tuple(dict.fromkeys((tp, 3, 4, 5)))


@contextmanager
def _broken(how: str) -> Iterator[None]:
    import tpinit.runtime.init.launch as launch

    original = launch.prepare

    def broken(*arguments: Any) -> Any:
        ready = original(*arguments)
        layers = list(ready.plan.layers)
        if how == "sum":
            del layers[max(place for place, one in enumerate(layers) if one.kind in (*ROWS, LayerKind.EXPERTS))]
        elif how == "entry":
            last = max(
                place for place, one in enumerate(layers) if one.kind is LayerKind.COLUMN and one.reduce_input_grad
            )
            layers[last] = replace(layers[last], reduce_input_grad=False, fused_with="")
        return replace(ready, plan=replace(ready.plan, layers=tuple(layers)))

    launch.prepare = broken
    try:
        yield
    finally:
        launch.prepare = original


def _batch(name: str, model: torch.nn.Module, seed: int) -> dict[str, Any]:
    batch = catalogue.batch(name, model, seed, rows=2)
    return {key: one.bfloat16() if one.is_floating_point() else one for key, one in batch.items()}


# --- the sharded model ---------------------------------------------------------------------------------------


def _sharded_step(name: str, engine: Any, batch: dict[str, Any]) -> Step:
    loss = catalogue.loss(name, engine, batch)
    engine.backward(loss)
    gradients = _gathered(engine, lambda state: state.exact_grad())
    engine.step()
    weights = _gathered(engine, lambda state: state.target.data)
    return Step(float(loss), torch.finfo(loss.dtype).eps, gradients, engine.get_global_grad_norm(), weights)


def _gathered(engine: Any, part_of: Callable[[Any], torch.Tensor | None]) -> PackedTensors:
    """Put together what the ranks hold of what the optimizer updates: fp32 masters."""
    wholes = gathered(engine, {state.record.name: part_of(state) for state in engine._param_states})
    return PackedTensors({name: one for name, one in wholes.items() if one is not None})


# --- the whole model, its sums taken in parts ----------------------------------------------------------------


def _whole_steps(
    name: str, whole: torch.nn.Module, plan: Plan, parts: int, batches: list[dict[str, Any]]
) -> list[Step]:
    """Train a copy of the whole model in bf16 with fp32 masters, as the engine does."""
    model = copy.deepcopy(whole)
    parameters = dict(model.named_parameters())
    for one in parameters.values():
        one.data = one.data.bfloat16()
    if parts > 1:
        _take_in_parts(model, plan, parts)
    masters = {key: torch.nn.Parameter(one.detach().float()) for key, one in parameters.items()}
    optimizer = torch.optim.SGD(masters.values(), **SGD["params"])
    return [_whole_step(name, model, parameters, masters, optimizer, batch) for batch in batches]


def _whole_step(
    name: str, model: Any, parameters: Any, masters: dict[str, Any], optimizer: Any, batch: dict[str, Any]
) -> Step:
    loss = catalogue.loss(name, model, batch)
    loss.backward()
    for key, one in parameters.items():
        masters[key].grad = None if one.grad is None else one.grad.float()
        one.grad = None
    gradients = PackedTensors({key: one.grad.clone() for key, one in masters.items() if one.grad is not None})
    norm = torch.nn.utils.clip_grad_norm_(masters.values(), CLIPPING)
    optimizer.step()
    for key, one in parameters.items():
        one.data.copy_(masters[key].data)
    weights = PackedTensors({key: one.data.clone() for key, one in masters.items()})
    return Step(float(loss), torch.finfo(loss.dtype).eps, gradients, float(norm), weights)


def _take_in_parts(model: torch.nn.Module, plan: Plan, parts: int) -> None:
    """Give every module that the plan cuts a forward that takes its sums in `parts` parts, the last one first."""
    matrices = find_linears(model)
    for layer in plan.layers:
        module: Any = model.get_submodule(layer.module)
        if layer.kind is LayerKind.EXPERTS:
            module.forward = _experts_in_parts(module, parts)
        elif layer.kind in ROWS:
            module.forward = _row_in_parts(module, 1 - matrices[layer.module].out_dim, parts)
        elif layer.kind in COLUMNS:
            module.forward = _column_in_parts(module, matrices[layer.module].out_dim, parts)


def _linear(features: torch.Tensor, weight: torch.Tensor, out_dim: int) -> torch.Tensor:
    return torch.nn.functional.linear(features, weight if out_dim == 0 else weight.t())


def _row_in_parts(module: Any, in_dim: int, parts: int) -> Callable[..., torch.Tensor]:
    def forward(features: torch.Tensor, *_: Any) -> torch.Tensor:
        pieces = zip(features.tensor_split(parts, -1), module.weight.tensor_split(parts, in_dim), strict=True)
        total = sum(_linear(part, weight, 1 - in_dim) for part, weight in reversed(list(pieces)))
        return total if module.bias is None else total + module.bias

    return forward


def _column_in_parts(module: Any, out_dim: int, parts: int) -> Callable[..., torch.Tensor]:
    """Forward it is the same; backward each part gives a gradient of the features, and those are summed."""

    def forward(features: torch.Tensor, *_: Any) -> torch.Tensor:
        pieces = module.weight.tensor_split(parts, out_dim)
        output = torch.cat([_linear(features, weight, out_dim) for weight in pieces], -1)
        return output if module.bias is None else output + module.bias

    return forward


def _experts_in_parts(module: Any, parts: int) -> Callable[..., torch.Tensor]:
    """Run a block of experts once for each part of every expert's features."""
    found = fit_experts(module, parts)
    original = module.forward

    def place(path: str) -> tuple[dict[str, Any], str]:
        above, _, last = path.rpartition(".")
        return module.get_submodule(above).__dict__, last

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        outputs = []
        for part in reversed(range(parts)):
            held: dict[str, Any] = {
                key: take_pieces(module.get_parameter(key), placed.dim, placed.shard_map.slices[part])
                for key, placed in found.placements.items()
            }
            held |= {key: torch.zeros_like(module.get_parameter(key)) for key in found.first_rank_only if part}
            held |= {path: ranks[part] for path, ranks in found.attributes}
            kept = {path: owner[last] for path, _ in found.attributes for owner, last in (place(path),)}
            for path, value in held.items():
                owner, last = place(path)
                owner[last] = value
            outputs.append(original(*args, **kwargs))
            for path in held:
                owner, last = place(path)
                del owner[last]
            for path, value in kept.items():
                owner, last = place(path)
                owner[last] = value
        return sum(outputs)

    return forward


# --- how far apart -------------------------------------------------------------------------------------------


def _distances(run: list[Step], plain: list[Step]) -> dict[str, list[float]]:
    """Return the relative distance at each step: of all numbers together, and of the worst single parameter."""
    pairs = list(zip(run, plain, strict=True))
    return {
        "loss": [abs(one.loss / other.loss - 1) for one, other in pairs],
        "norm": [abs(one.norm / other.norm - 1) for one, other in pairs],
        "gradients": [_all_apart(one.gradients, other.gradients) for one, other in pairs],
        "worst gradient": [_worst_apart(one.gradients, other.gradients) for one, other in pairs],
        "weights": [_all_apart(one.weights, other.weights) for one, other in pairs],
        "worst weight": [_worst_apart(one.weights, other.weights) for one, other in pairs],
    }


def _all_apart(one: PackedTensors, other: PackedTensors) -> float:
    assert one.keys() == other.keys()
    apart = torch.stack([(one[key] - other[key]).norm() for key in other]).norm()
    return float(apart / torch.stack([tensor.norm() for tensor in other.values()]).norm())


def _worst_apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    largest = max(float(tensor.norm()) for tensor in other.values())
    return max(
        float((one[key] - right).norm()) / (float(right.norm()) + 1e-2 * largest) for key, right in other.items()
    )
