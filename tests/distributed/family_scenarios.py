"""Every family, sharded against unsharded: what the ranks do."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as dist
from scenarios import Counter
from tpinit.runtime import initialize
from tpinit.runtime.slicing import assemble

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))

import catalogue

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
    parts, mine = dist.get_world_size() // tp, engine.mesh.data_index
    worst = {"loss": 0.0, "gradient": 0.0, "norm": 0.0, "weight": 0.0}
    where = {}
    counter = Counter()
    for step in range(steps):
        batch = _batch(name, reference, step, 2 * parts, causal)
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
            loss = _loss(name, engine, part, causal)
            engine.backward(loss)
        total = loss.detach().clone()
        dist.all_reduce(total)
        # One rank trains the whole model, and tells: on a machine of few cores, the others would be in its way.
        told = [_whole_step(name, reference, updates, batch, causal, clipping) if rank == 0 else None]
        dist.broadcast_object_list(told, src=0)
        whole = told[0]
        _worst(worst, where, "loss", abs(float(total) / dist.get_world_size() / whole["loss"] - 1), "")
        for parameter, apart in _apart(engine, whole["grad"], "grad").items():
            _worst(worst, where, "gradient", apart, parameter)
        engine.step()
        _worst(worst, where, "norm", abs(engine.get_global_grad_norm() / whole["norm"] - 1), "")
        for parameter, apart in _apart(engine, whole["data"], "data").items():
            _worst(worst, where, "weight", apart, parameter)
    records = engine.plan.parameters
    return {
        **worst,
        "where": where,
        "cut": sum(record.dim is not None for record in records),
        "cut_numbers": sum(one.numel() for one in engine.module.parameters()),
        "numbers": sum(one.numel() for one in reference.parameters()),
        "calls": counter.calls,
        "notes": engine.plan.notes,
        "source": engine.plan.source,
    }


def _batch(name: str, model: Any, seed: int, rows: int, causal: bool) -> dict[str, Any]:
    return catalogue.batch_causal(name, model, seed) if causal else catalogue.batch(name, model, seed, rows=rows)


def _loss(name: str, model: Any, batch: dict[str, Any], causal: bool) -> torch.Tensor:
    return catalogue.loss_causal(model, batch) if causal else catalogue.loss(name, model, batch)


def _whole_step(
    name: str, model: Any, updates: torch.optim.Optimizer, batch: dict[str, Any], causal: bool, clipping: float
) -> dict[str, Any]:
    """Train the whole model by one step; return its loss, gradients and their norm before clipping, and new weights."""
    loss = _loss(name, model, batch, causal)
    loss.backward()
    told = {
        "loss": float(loss.detach()),
        "grad": Together({key: _kept(one) for key, one in _tensors(model, "grad").items()}),
    }
    told["norm"] = float(torch.nn.utils.clip_grad_norm_(model.parameters(), clipping or float("inf")))
    updates.step()
    updates.zero_grad()
    return told | {"data": _tensors(model, "data")}


def _kept(gradient: torch.Tensor | None) -> torch.Tensor | None:
    return None if gradient is None else gradient.clone()


def _tensors(model: torch.nn.Module, what: str) -> Together:
    return Together({name: getattr(one, what) for name, one in model.named_parameters()})


def _worst(worst: dict[str, float], where: dict[str, Any], what: str, apart: float, name: str) -> None:
    if worst[what] == worst[what] and not apart <= worst[what]:  # what is no number stays
        worst[what], where[what] = apart, name


def _apart(engine: Any, expected: Mapping[str, torch.Tensor | None], what: str) -> dict[str, float]:
    """Return for each parameter how far it is from the whole one, beside its own norm and a part of the largest."""
    actual = gathered(engine, _tensors(engine.module, what))
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
    side, records = engine.mesh.tp, engine.plan.parameters
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


def dropout(
    rank: int, name: str, checkpointing: bool = False, row: str = "", training: bool = True, **overrides: Any
) -> dict[str, Any]:
    """Train with dropout, ranks with other random states; return losses, masks inside the cut, and gradients."""
    torch.manual_seed(100 + rank)
    model = catalogue.build(name, **overrides).train(training)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for key, one in model.named_parameters():
        if key.endswith("wi.weight"):  # both halves alike, so that nothing but dropout tells the ranks apart
            one.data[len(one) // 2 :] = one.data[: len(one) // 2]
    reference = copy.deepcopy(model)
    world = dist.get_world_size()
    config = {"train_micro_batch_size_per_gpu": 2, "optimizer": SGD, "tensor_parallel": {"autotp_size": world}}
    engine, _, _, _ = initialize(model=model, config=config)
    inside: list[torch.Tensor] = []
    rows = [one for key, one in model.named_modules() if type(one).__name__.startswith("RowLayerOf") and row in key]
    rows[0].register_forward_pre_hook(lambda _, args: inside.append(args[0].detach().clone()))
    batch = catalogue.batch(name, reference, 0, rows=2)
    state = torch.get_rng_state()
    loss = catalogue.loss(name, engine, batch)
    engine.backward(loss)
    torch.set_rng_state(state)
    expected = catalogue.loss(name, reference, batch)
    expected.backward()
    return {
        "loss": float(loss),
        "whole": float(expected),
        "gradients": max(_apart(engine, _tensors(reference, "grad"), "grad").values()),
        "zeros": [(one == 0).tolist() for one in inside],
        "calls": len(inside),
        "random": sum(layer.draws_random for layer in engine.plan.layers),
        "replicated": [
            one.grad.double().sum().item()
            for record, (_, one) in zip(engine.plan.parameters, model.named_parameters(), strict=True)
            if record.dim is None and one.grad is not None
        ],
    }


class Skipping(torch.nn.Module):
    """Blocks that are skipped in training where a number that `draws` gives is low."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw
        self.skipped: list[int] = []
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8)) for _ in range(12)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.skipped = [place for place in range(len(self.blocks)) if self.training and self.draw() < 0.5]
        for place, block in enumerate(self.blocks):
            x = x if place in self.skipped else x + block(x)
        return x


DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: float(torch.rand([])),
    "Python": lambda: random.uniform(0, 1),
    "numpy": lambda: float(numpy.random.rand()),
}


@contextmanager
def rewound() -> Iterator[None]:
    """Let what comes after draw the same numbers as what runs inside."""
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    yield
    for back, state in zip((torch.set_rng_state, random.setstate, numpy.random.set_state), states, strict=True):
        back(state)


def skipping(rank: int, draws: str) -> dict[str, Any]:
    """Train blocks that are skipped now and then, on ranks with other random states, beside the whole model."""
    torch.manual_seed(0)
    model = Skipping(DRAWS[draws]).train()
    x = torch.randn(2, 3, 8)
    for seed in (torch.manual_seed, random.seed, numpy.random.seed):
        seed(100 + rank)
    reference, alone = copy.deepcopy(model), copy.deepcopy(model)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": dist.get_world_size()},
    }
    with rewound():
        alone(x)
    engine, _, _, _ = initialize(model=model, config=config, example={"x": x})
    with rewound():
        loss = engine(x=x).square().sum()
        engine.backward(loss)
    expected = reference(x=x).square().sum()
    expected.backward()
    return {
        "alone": alone.skipped,
        "skipped": model.skipped,
        "whole": reference.skipped,
        "loss": float(loss) / float(expected) - 1,
        "gradients": max(_apart(engine, _tensors(reference, "grad"), "grad").values()),
        "cut": len(engine.plan.layers),
    }


def lora(rank: int, name: str, targets: list[str]) -> dict[str, Any]:
    """Train peft's adapters over cut layers, with all else frozen."""
    from peft import LoraConfig, get_peft_model

    def build() -> Any:
        model = get_peft_model(catalogue.build(name), LoraConfig(r=4, lora_alpha=8, target_modules=targets))
        generator = torch.Generator().manual_seed(7)
        for key, one in model.named_parameters():
            if "lora_" in key:  # B is zero at first, which would hide what A does
                one.data.copy_(torch.randn(one.shape, generator=generator) * 0.2)
        return model

    original = catalogue.build
    model = build()
    catalogue.build = lambda *_, **__: model
    try:
        result = family(rank, name, dist.get_world_size(), steps=3)
    finally:
        catalogue.build = original
    return result


def probed(rank: int, name: str, break_with: str = "", **overrides: Any) -> dict[str, Any]:
    """Initialize with the probe; return what it said. `break_with` spoils the plan behind the rehearsal's back."""
    import tpinit.runtime.init.api as api
    from tpinit.reference.errors import TpinitError

    model = catalogue.build(name, **overrides).train()
    before = {key: one.detach().clone() for key, one in model.named_parameters()}
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": dist.get_world_size()},
    }
    original = api.prepare

    def spoiled(given: Any, report: Any) -> Any:
        ready = original(given, report)
        layers = ready.plan.layers
        if break_with == "entry":
            layers = tuple(
                replace(one, reduce_input_grad=False, fused_with="") if one.kind.value == "column" else one
                for one in layers
            )
        elif break_with == "sum":
            layers = tuple(one for one in layers if one.kind.value != "experts")
        blocks = ready.plan.blocks
        if break_with == "once":  # so all ranks add it
            blocks = tuple(replace(one, first_rank_only=()) for one in blocks)
        return replace(ready, plan=replace(ready.plan, layers=layers, blocks=blocks))

    api.prepare = spoiled
    text = ""
    try:
        initialize(model=model, config=config, verify="probe")
    except TpinitError as error:
        text = f"{type(error).__name__}: {error}"
    finally:
        api.prepare = original
    same = all(torch.equal(before[key], one) for key, one in model.named_parameters() if one.shape == before[key].shape)
    whole = all(one.shape == before[key].shape for key, one in model.named_parameters())
    return {"text": text, "untouched": same and whole}


def from_logits(rank: int, name: str) -> dict[str, Any]:
    """Compute the loss outside of the model, from its logits, which are whole then."""
    model = catalogue.build(name).train()
    reference = copy.deepcopy(model)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": dist.get_world_size()},
    }
    engine, _, _, _ = initialize(model=model, config=config)
    batch = catalogue.batch(name, reference, 0, rows=2)
    labels = batch.pop("labels")
    losses = []
    for one in (engine, reference):
        logits = one(**batch).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        if one is engine:
            engine.backward(loss)
        else:
            loss.backward()
        losses.append(float(loss))
    with torch.no_grad():
        apart = float((engine(**batch).logits - reference(**batch).logits).abs().max())
        inside = engine(**batch, labels=labels)
    return {
        "losses": losses,
        "logits": apart,
        "gradients": max(_apart(engine, _tensors(reference, "grad"), "grad").values()),
        "whole_without_gradients": inside.logits.shape == (*labels.shape, model.config.vocab_size),
        "dropped_with_labels": engine(**batch, labels=labels).logits is None,
    }
