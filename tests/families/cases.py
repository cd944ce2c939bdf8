"""The code of a rank: train one small model of the catalogue, sharded by one runner and unsharded, on the same data.

The runner `ours` is the scenario of the distributed tests. Peers get the same model, data and SGD.
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
DEFAULTS = {"attn_implementation": None, "experts_implementation": None}  # let transformers choose
Backward = Callable[[Any], None]


class NotRun(Exception):
    """The model can't be prepared for the peer, so the peer is not judged."""


class PeerRefused(Exception):
    """The peer raised an exception before training began."""


@contextlib.contextmanager
def before_training() -> Iterator[None]:
    """Turn any exception of the block into PeerRefused."""
    try:
        yield
    except Exception as error:
        raise PeerRefused(f"{type(error).__name__}: {error}") from error


def build(name: str, causal: bool, **settings: Any) -> nn.Module:
    """Return the small fp32 model of this name, in training mode."""
    model = catalogue.build_causal(name, **settings) if causal else catalogue.build(name, **settings)
    return model.train()


def ours(rank: int, name: str, causal: bool, tp: int, double: bool = False) -> dict[str, Any]:
    """Train with tpinit, as the distributed tests do: see `support.family_training`."""
    training: Any = importlib.import_module("support.family_training")

    def batch_of(name: str, model: nn.Module, seed: int, rows: int, causal: bool) -> dict[str, Any]:  # noqa: ARG001
        data = _batch(name, causal, model, seed)
        # In a list, so that it is not split by rows: one replica trains on all of it.
        return {"all": [{key: _widened(tensor) for key, tensor in data.items()} if double else data]}

    def loss_of(name: str, model: Any, data: dict[str, Any], causal: bool) -> Tensor:
        loss: Tensor = training.family_loss(name, model, data["all"][0], causal)
        return loss

    if double:
        _widen()
    options = {"steps": STEPS, "batch_of": batch_of, "loss_of": loss_of}
    result: dict[str, Any] = training.train_family(rank, name, tp, causal=causal, double=double, **options)
    kept = ("loss", "gradient", "norm", "weight", "where", "local_elements", "elements", "source")
    return {key: result[key] for key in kept}


def _widen() -> None:
    """Replace fp32 by fp64 in this process, which ends soon: norms and losses convert to fp32 explicitly."""
    torch.float32 = torch.float = torch.float64  # type: ignore[misc]
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def deepspeed(_: int, name: str, causal: bool, tp: int, **settings: Any) -> dict[str, Any]:
    """Train with DeepSpeed's AutoTP: `deepspeed.initialize` with `autotp_size`."""
    library = importlib.import_module("deepspeed")
    # Its shared-memory all-reduce serves inference only; disable it, because its C++ build takes a minute.
    importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    model = build(name, causal, **settings)
    reference = copy.deepcopy(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine: Any
    with before_training():
        engine = library.initialize(
            model=model,
            model_parameters=trained,
            optimizer=lambda parameters: torch.optim.SGD(parameters, **SGD),
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 2,
                "gradient_clipping": 0.0,  # the default clips at 1.0
                "zero_optimization": {"stage": 0},
                "tensor_parallel": {"autotp_size": tp},
                "steps_per_print": 1 << 30,
            },
        )[0]
    engine.train()
    return compared(name, causal, engine, engine.module, reference, engine.backward, engine.step)


def transformers(rank: int, name: str, causal: bool, tp: int, **settings: Any) -> dict[str, Any]:
    """Train with transformers' own TP: `from_pretrained` with `tp_plan="auto"`, from a checkpoint saved here."""
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
        raise NotRun(f"the unsharded model can't be saved and loaded: {error}") from error
    plan = DistributedConfig(tp_size=tp, tp_plan="auto")
    with before_training():
        sharded = read(folder, dtype=torch.float32, distributed_config=plan, **backends).train()
    trained = [parameter for parameter in sharded.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, **SGD, foreach=False)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return compared(name, causal, sharded, sharded, reference, torch.autograd.backward, step)


def compared(
    name: str,
    causal: bool,
    call: Any,
    module: nn.Module,
    reference: nn.Module,
    backward: Backward,
    step: Callable[[], Any],
    steps: int = STEPS,
) -> dict[str, Any]:
    """Train `call`, whose parameters are in `module`, beside the unsharded `reference`; return the differences.

    `loss` and `gradient` are the largest relative errors over all steps. `noise` is the error of the reference in fp32
    from itself in fp64, measured only if the other errors are not small. `uncompared` counts gradients whose shards do
    not add up to the unsharded gradient. `elements` and `local_elements` count the elements of the parameters of the
    reference and of this rank.
    """
    first = copy.deepcopy(reference)
    errors: dict[str, Any] = {"loss": 0.0, "gradient": 0.0, "noise": 0.0, "uncompared": 0}
    errors |= {
        "elements": sum(parameter.numel() for parameter in reference.parameters()),
        "local_elements": sum(map(_local_elements, module.parameters())),
    }
    update = _optimizer(reference)
    for number in range(steps):
        data = _batch(name, causal, reference, number)
        loss = _loss(name, causal, call, data)
        backward(loss)
        expected = _loss(name, causal, reference, data)
        torch.autograd.backward(expected)
        errors["loss"] = worse(errors["loss"], _relative_error(loss, expected))
        for error in _gradient_errors(module, reference):
            if error is None:
                errors["uncompared"] += 1
            else:
                errors["gradient"] = worse(errors["gradient"], error)
        step()
        update.step()
        update.zero_grad()
    if not max(errors["loss"], errors["gradient"]) <= 1e-4:
        errors["noise"] = _noise(name, causal, first, steps)
    return errors


def worse(error: float, other: float) -> float:
    """Return the larger of two errors; nan counts as larger than any number."""
    return error if error != error or error >= other else other


def _noise(name: str, causal: bool, model: nn.Module, steps: int) -> float:
    """Return the error of the unsharded model in fp32 from itself in fp64, 0 if it does not run in fp64."""
    double = copy.deepcopy(model).double()
    updates = [_optimizer(model), _optimizer(double)]
    noise = 0.0
    try:
        for number in range(steps):
            data = _batch(name, causal, model, number)
            wide = {key: _widened(tensor) for key, tensor in data.items()}
            losses = [_loss(name, causal, model, data), _loss(name, causal, double, wide)]
            for loss in losses:
                torch.autograd.backward(loss)
            noise = worse(noise, _relative_error(*losses))
            for error in _gradient_errors(model, double):
                noise = worse(noise, error or 0.0)
            for update in updates:
                update.step()
                update.zero_grad()
    except Exception:  # without a run in fp64 the noise is unknown, and no larger error is accepted
        return 0.0
    return noise if noise == noise else 0.0


def _gradient_errors(module: nn.Module, reference: nn.Module) -> Iterable[float | None]:
    """Yield the error of each gradient, relative to its own norm plus 1 % of the largest norm.

    The shards are gathered from all ranks. A peer may order them in its own way, so a sharded gradient whose elements
    differ in place is compared after sorting. Yields None if the shards do not add up to the unsharded gradient.
    """
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    actual = {name: _full(parameter.grad) for name, parameter in module.named_parameters() if name in expected}
    elements = {name: parameter.numel() for name, parameter in reference.named_parameters()}
    sharded = {
        name
        for name, parameter in module.named_parameters()
        if name in elements and _local_elements(parameter) != elements[name]
    }
    if all(gradient is None for gradient in actual.values()):
        return  # the peer keeps its gradients elsewhere
    largest = max((float(gradient.norm()) for gradient in expected.values() if gradient is not None), default=0.0)
    ranks: list[Any] = [actual]
    if dist.is_initialized():
        ranks = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, actual)
    for name, own in actual.items():
        right, shards = expected[name], [rank.get(name) for rank in ranks]
        if right is None or any(shard is None for shard in shards):
            all_zero = all(gradient is None or not float(gradient.norm()) for gradient in (right, *shards))
            yield 0.0 if all_zero else float("inf")
            continue
        gathered = own if own.numel() == right.numel() else torch.cat([shard.flatten() for shard in shards])
        if gathered.numel() != right.numel():
            yield None
            continue
        pairs = [(gathered, right)] if gathered.shape == right.shape else []
        if name in sharded or not pairs:
            pairs.append((gathered.flatten().sort().values, right.flatten().sort().values))
        yield min(float((a - b).norm()) / (float(b.norm()) + 1e-2 * largest) for a, b in pairs)


def _full(gradient: Any) -> Any:
    """Return the full tensor of a DTensor, and any other gradient (this rank's shard) as it is."""
    if gradient is None:
        return None
    return (gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient).detach().as_subclass(torch.Tensor)


def _local_elements(parameter: Any) -> int:
    """Return the number of elements of a parameter on this rank."""
    return int((parameter.to_local() if hasattr(parameter, "to_local") else parameter).numel())


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], **SGD)


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    return abs(float(actual.detach()) / float(expected.detach()) - 1)


def _batch(name: str, causal: bool, model: nn.Module, seed: int) -> dict[str, Tensor]:
    return catalogue.batch_causal(name, model, seed) if causal else catalogue.batch(name, model, seed)


def _loss(name: str, causal: bool, model: Any, data: dict[str, Tensor]) -> Tensor:
    return catalogue.loss_causal(model, data) if causal else catalogue.loss(name, model, data)


def preload(runner: str) -> None:
    """Import the packages of a runner before the ranks are forked, so that no rank imports them again."""
    for module in ("transformers.modeling_utils", "torch.distributed.tensor", "torch._dynamo"):
        importlib.import_module(module)
    if runner == "ours":
        importlib.import_module("support.family_training")
    elif runner == "transformers":
        importlib.import_module("accelerate")
    else:
        importlib.import_module("deepspeed")
