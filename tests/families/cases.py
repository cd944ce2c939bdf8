"""What a rank does: train one small model of the catalogue cut and whole on the same data, by one of the runners.

Ours is the scenario of the distributed tests. Peers are given what ours is given: the same model, data, and SGD.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from families import catalogue

STEPS = 3
SGD = {"lr": 0.05, "momentum": 0.9}
DEFAULTS = {"attn_implementation": None, "experts_implementation": None}  # what transformers takes if nobody says
Take = Callable[[Any], None]


class NotRun(Exception):
    """The peer can't be given the model at all: nothing is said of the peer."""


class PeerRefused(Exception):
    """The peer raised an error before training began."""


@contextlib.contextmanager
def cutting() -> Iterator[None]:
    """What is raised in here is raised before training."""
    try:
        yield
    except Exception as error:
        raise PeerRefused(f"{type(error).__name__}: {error}") from error


def build(name: str, causal: bool, **settings: Any) -> nn.Module:
    """Return the small model, in training mode."""
    model = catalogue.build_causal(name, **settings) if causal else catalogue.build(name, **settings)
    return model.train()


def ours(rank: int, name: str, causal: bool, tp: int, double: bool = False) -> dict[str, Any]:
    """Train by tpinit: see `support.family_training.family`, which is changed here in what is for several replicas."""
    training: Any = importlib.import_module("support.family_training")
    take = training.family_loss

    def batch(name: str, model: nn.Module, seed: int, rows: int, causal: bool) -> dict[str, Any]:  # noqa: ARG001
        data = _batch(name, causal, model, seed)
        # Out of sight of who would split it by rows: one replica takes all, and rows of sound are not samples.
        return {"all": [{key: _widened(one) for key, one in data.items()} if double else data]}

    def worst(found: dict[str, float], where: dict[str, str], what: str, apart: float, parameter: str) -> None:
        if worse(found[what], apart) is not found[what]:
            found[what], where[what] = apart, parameter

    training.family_batch, training._worst = batch, worst
    training.family_loss = lambda name, model, data, causal: take(name, model, data["all"][0], causal)
    if double:
        _widen()
    result: dict[str, Any] = training.family(rank, name=name, tp=tp, steps=STEPS, causal=causal, double=double)
    kept = ("loss", "gradient", "norm", "weight", "where", "cut_numbers", "numbers", "source")
    return {key: result[key] for key in kept}


def _widen() -> None:
    """Have fp64 wherever fp32 is asked for, in this process, which ends soon: norms and losses ask for it."""
    torch.float32 = torch.float = torch.float64  # type: ignore[misc]
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]


def _widened(one: Tensor) -> Tensor:
    return one.double() if one.is_floating_point() else one


def deepspeed(_: int, name: str, causal: bool, tp: int, **settings: Any) -> dict[str, Any]:
    """Train by DeepSpeed's AutoTP: `deepspeed.initialize` with `autotp_size`."""
    library = importlib.import_module("deepspeed")
    # Its shared-memory reduction serves inference only, and costs a C++ build of a minute.
    importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    model = build(name, causal, **settings)
    reference = copy.deepcopy(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine: Any
    with cutting():
        engine = library.initialize(
            model=model,
            model_parameters=trained,
            optimizer=lambda parameters: torch.optim.SGD(parameters, **SGD),
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 2,
                "gradient_clipping": 0.0,  # or else it clips at 1.0
                "zero_optimization": {"stage": 0},
                "tensor_parallel": {"autotp_size": tp},
                "steps_per_print": 1 << 30,
            },
        )[0]
    engine.train()
    return compared(name, causal, engine, engine.module, reference, engine.backward, engine.step)


def transformers(rank: int, name: str, causal: bool, tp: int, **settings: Any) -> dict[str, Any]:
    """Train by transformers' own TP: `from_pretrained` with `tp_plan="auto"`, from a checkpoint that was saved here."""
    from transformers.distributed.configuration_utils import DistributedConfig

    model = build(name, causal, **settings)
    backends = {key: settings.get(key, "eager") for key in DEFAULTS}
    folder = str(Path(os.environ["TPINIT_SWEEP_FOLDER"]) / "model")
    try:
        if rank == 0:
            model.save_pretrained(folder)
        dist.barrier()
        read: Any = type(model).from_pretrained
        reference = read(folder, dtype=torch.float32, **backends).train()
    except Exception as error:
        raise NotRun(f"the whole model can't be saved and read: {error}") from error
    plan = DistributedConfig(tp_size=tp, tp_plan="auto")
    with cutting():
        cut = read(folder, dtype=torch.float32, distributed_config=plan, **backends).train()
    optimizer = torch.optim.SGD([one for one in cut.parameters() if one.requires_grad], **SGD, foreach=False)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return compared(name, causal, cut, cut, reference, torch.autograd.backward, step)


def compared(
    name: str,
    causal: bool,
    call: Any,
    module: nn.Module,
    reference: nn.Module,
    backward: Take,
    step: Callable[[], Any],
    steps: int = STEPS,
) -> dict[str, Any]:
    """Train `call`, of which `module` holds the parameters, beside the whole `reference`; return how far they part.

    `loss` and `gradient` are the largest relative distances in any step; `noise` is that of the reference from itself
    in fp64, taken only where the others are not small; `uncompared` counts gradients whose parts can't be told.
    """
    first = copy.deepcopy(reference)
    apart: dict[str, Any] = {"loss": 0.0, "gradient": 0.0, "noise": 0.0, "uncompared": 0}
    apart |= {
        "numbers": sum(one.numel() for one in reference.parameters()),
        "cut_numbers": sum(map(_held, module.parameters())),
    }
    update = _optimizer(reference)
    for number in range(steps):
        data = _batch(name, causal, reference, number)
        loss = _loss(name, causal, call, data)
        backward(loss)
        right = _loss(name, causal, reference, data)
        torch.autograd.backward(right)
        apart["loss"] = worse(apart["loss"], _off(loss, right))
        for off in _gradients(module, reference):
            if off is None:
                apart["uncompared"] += 1
            else:
                apart["gradient"] = worse(apart["gradient"], off)
        step()
        update.step()
        update.zero_grad()
    if not max(apart["loss"], apart["gradient"]) <= 1e-4:
        apart["noise"] = _noise(name, causal, first, steps)
    return apart


def worse(one: float, other: float) -> float:
    """The larger of two distances, in which a nan is larger than anything."""
    return one if one != one or one >= other else other


def _noise(name: str, causal: bool, model: nn.Module, steps: int) -> float:
    """How far the whole model in fp32 is from itself in fp64: 0 if it can't be had in fp64."""
    double = copy.deepcopy(model).double()
    updates = [_optimizer(model), _optimizer(double)]
    noise = 0.0
    try:
        for number in range(steps):
            data = _batch(name, causal, model, number)
            wide = {key: _widened(one) for key, one in data.items()}
            losses = [_loss(name, causal, model, data), _loss(name, causal, double, wide)]
            for loss in losses:
                torch.autograd.backward(loss)
            noise = worse(noise, _off(*losses))
            for off in _gradients(model, double):
                noise = worse(noise, off or 0.0)
            for update in updates:
                update.step()
                update.zero_grad()
    except Exception:  # no noise is known, and none is granted
        return 0.0
    return noise if noise == noise else 0.0


def _gradients(module: nn.Module, reference: nn.Module) -> Iterable[float | None]:
    """How far each gradient is from the whole one, beside its own norm and a part of the largest.

    Parts are gathered from all ranks. How a peer orders them is its own affair, so the values are compared in
    ascending order where they differ in place. Where the parts are not the whole, nothing can be said: None.
    """
    expected = {name: one.grad for name, one in reference.named_parameters()}
    actual = {name: _own(one.grad) for name, one in module.named_parameters() if name in expected}
    numbers = {name: one.numel() for name, one in reference.named_parameters()}
    cut = {name for name, one in module.named_parameters() if name in numbers and _held(one) != numbers[name]}
    if all(one is None for one in actual.values()):
        return  # the peer keeps its gradients elsewhere
    largest = max((float(one.norm()) for one in expected.values() if one is not None), default=0.0)
    ranks: list[Any] = [actual]
    if dist.is_initialized():
        ranks = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, actual)
    for name, own in actual.items():
        right, parts = expected[name], [rank.get(name) for rank in ranks]
        if right is None or any(part is None for part in parts):
            nothing = all(one is None or not float(one.norm()) for one in (right, *parts))
            yield 0.0 if nothing else float("inf")
            continue
        got = own if own.numel() == right.numel() else torch.cat([part.flatten() for part in parts])
        if got.numel() != right.numel():
            yield None
            continue
        pairs = [(got, right)] if got.shape == right.shape else []
        if name in cut or not pairs:
            pairs.append((got.flatten().sort().values, right.flatten().sort().values))
        yield min(float((a - b).norm()) / (float(b.norm()) + 1e-2 * largest) for a, b in pairs)


def _own(gradient: Any) -> Any:
    """What this rank has of a gradient, and all of it where its type knows how to put it together."""
    if gradient is None:
        return None
    return (gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient).detach()


def _held(parameter: Any) -> int:
    """The numbers of a parameter that this rank holds."""
    return int((parameter.to_local() if hasattr(parameter, "to_local") else parameter).numel())


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([one for one in model.parameters() if one.requires_grad], **SGD)


def _off(got: Tensor, right: Tensor) -> float:
    return abs(float(got.detach()) / float(right.detach()) - 1)


def _batch(name: str, causal: bool, model: nn.Module, seed: int) -> dict[str, Tensor]:
    return catalogue.batch_causal(name, model, seed) if causal else catalogue.batch(name, model, seed)


def _loss(name: str, causal: bool, model: Any, data: dict[str, Tensor]) -> Tensor:
    return catalogue.loss_causal(model, data) if causal else catalogue.loss(name, model, data)


def preload(runner: str) -> None:
    """Import what the ranks of a runner need, so that they do not each do it for every model."""
    for module in ("transformers.modeling_utils", "torch.distributed.tensor", "torch._dynamo"):
        importlib.import_module(module)
    if runner == "ours":
        importlib.import_module("support.family_training")
    elif runner == "transformers":
        importlib.import_module("accelerate")
    else:
        importlib.import_module("deepspeed")
