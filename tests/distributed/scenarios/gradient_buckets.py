"""Gradients sent in buckets while the backward runs, beside the mean of what each rank computes alone."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint
from tpinit.runtime import Engine, initialize

from support.collectives import CollectiveCounter
from support.refusals import in_step, refusal_of
from support.tiny_models import build, tokens

WIDTH, BLOCKS = 8, 4
BUCKET = 160  # elements: two of the blocks, of 72

# What each rank does in each update: the branch that it takes, and whether it freezes the first block.
STEPS: tuple[tuple[tuple[str, bool], tuple[str, bool]], ...] = (
    (("a", False), ("a", False)),
    (("a", False), ("a", False)),
    (("a", False), ("b", False)),
    (("b", False), ("b", False)),
    (("", False), ("", False)),
    (("a", True), ("a", True)),
    (("a", False), ("a", True)),
    (("a", False), ("a", False)),
)


class Branches(nn.Module):
    """Blocks in a row, one that is used twice, a tied weight, and two branches of which a forward takes one or none."""

    def __init__(self, recompute: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.recompute = recompute  # "" is no checkpointing
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS))
        self.twice = nn.Linear(WIDTH, WIDTH)
        self.tied = nn.Linear(WIDTH, WIDTH, bias=False)
        self.tied.weight = self.blocks[1].weight
        self.branches = nn.ModuleDict({"a": nn.Linear(WIDTH, WIDTH), "b": nn.Linear(WIDTH, WIDTH)})

    def _block(self, index: int, values: torch.Tensor) -> torch.Tensor:
        values = self.blocks[index](values).tanh()
        return self.twice(values).tanh() if index % 2 else values

    def forward(self, values: torch.Tensor, branch: str) -> torch.Tensor:
        for index in range(BLOCKS):
            if self.recompute:
                values = checkpoint(self._block, index, values, use_reentrant=self.recompute == "reentrant")
            else:
                values = self._block(index, values)
        values = self.tied(values)
        values = self.branches[branch](values) if branch else values
        return values.square().mean()


def _batch(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(4, WIDTH, generator=generator, requires_grad=False)


def _freeze(model: nn.Module, frozen: bool) -> None:
    model.blocks[0].requires_grad_(not frozen)  # type: ignore[union-attr]  # a Branches


def _expected(model: nn.Module, step: int, micro_batches: int, dtype: torch.dtype) -> dict[str, torch.Tensor | None]:
    """Return the mean of the gradients of both ranks, computed without any other rank."""
    found: dict[str, list[torch.Tensor]] = {}
    for replica, (branch, frozen) in enumerate(STEPS[step]):
        alone = copy.deepcopy(model)
        _freeze(alone, frozen)
        for micro in range(micro_batches):
            alone.zero_grad()
            values = _batch(100 * step + 10 * micro + replica).to(dtype).requires_grad_()
            (alone(values, branch) / micro_batches).backward()
            for name, parameter in alone.named_parameters():
                if parameter.grad is not None:
                    found.setdefault(name, []).append(parameter.grad.float())
    return {
        name: torch.stack(found[name]).sum(0) / 2 if name in found else None for name, _ in model.named_parameters()
    }


def _unsharded(engine: Engine, recompute: str) -> nn.Module:
    alone = Branches(recompute).to(next(engine.module.parameters()).dtype)
    alone.load_state_dict({name: value.clone() for name, value in engine.module.state_dict().items()})
    return alone


class _Progress:
    """How many collectives were sent when the backward came to its last parameter, and whether that had a gradient."""

    def __init__(self, engine: Engine, counter: CollectiveCounter) -> None:
        self.before_the_end: list[int] = []
        self.had_gradients = True
        self.counter = counter
        engine.module.blocks[0].bias.register_post_accumulate_grad_hook(self)
        for parameter in engine.module.parameters():
            parameter.register_post_accumulate_grad_hook(self.look)

    def look(self, parameter: torch.Tensor) -> None:
        self.had_gradients = self.had_gradients and parameter.grad is not None

    def __call__(self, _: torch.Tensor) -> None:
        self.before_the_end.append(len(self.counter.calls))


def _engine(recompute: str, stage: int, extra: dict[str, Any], micro_batches: int = 1) -> Engine:
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": micro_batches,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": BUCKET},
        "tensor_parallel": {"autotp_size": 1},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.01}},
        **extra,
    }
    engine, *_ = initialize(model=Branches(recompute), config=config)
    return engine


def means(rank: int, recompute: str, stage: int = 0, micro_batches: int = 1, bf16: bool = False) -> dict[str, Any]:
    """Train through `STEPS`; return how far gradients are from the mean, and what was sent when."""
    engine = _engine(recompute, stage, {"bf16": {"enabled": bf16}}, micro_batches)
    dtype = torch.bfloat16 if bf16 else torch.float32
    progress = _Progress(engine, CollectiveCounter())
    worst, wrong, sent, early, held = 0.0, [], [], [], []
    for step, plan in enumerate(STEPS):
        branch, frozen = plan[rank]
        expected = _expected(_unsharded(engine, recompute), step, micro_batches, dtype)
        _freeze(engine.module, frozen)
        progress.before_the_end.clear()
        progress.counter.calls.clear()
        for micro in range(micro_batches):
            values = _batch(100 * step + 10 * micro + rank).to(dtype).requires_grad_()
            with progress.counter.on():
                engine.backward(engine(values, branch))
            if micro < micro_batches - 1:
                engine.step()
        sent.append(len(progress.counter.calls))
        early.append(max(progress.before_the_end, default=0))
        owns = []
        for name, parameter in engine.module.named_parameters():
            mean = expected[name]
            if parameter.grad is not None and mean is not None:
                worst = max(worst, float((parameter.grad.float() - mean.to(dtype).float()).abs().max()))
            elif stage < 2 and (parameter.grad is None) != (mean is None):
                wrong.append(f"step {step}: {name}")
            owns.append(parameter.grad is not None)
        held.append((owns, [mean is not None for mean in expected.values()]))
        engine.step()
    everywhere: list[Any] = [None, None]
    dist.all_gather_object(everywhere, [owns for owns, _ in held])
    return {
        "worst": worst,
        "wrong": wrong,
        "sent": sent,
        "early": early,
        "had_gradients": progress.had_gradients,
        # Under ZeRO 2: of each gradient that exists, on how many ranks it is.
        "holders": [
            sorted({one + other for one, other, live in zip(*ranks, lives, strict=True) if live})
            for *ranks, (_, lives) in zip(*everywhere, held, strict=True)
        ],
        "in_step": in_step(rank),
    }


def interrupted(rank: int) -> dict[str, Any]:
    """Raise in a backward that has sent buckets; return what is refused then, and the error of the next gradients."""
    engine = _engine("", 0, {})
    raising = [False]

    def raise_once(_: torch.Tensor) -> None:
        if raising[0]:
            raising[0] = False
            raise ValueError("a hook of the user")

    engine.module.blocks[0].bias.register_hook(raise_once)
    refused = []
    for number in range(3):
        raising[0] = number == 1
        try:
            engine.backward(engine(_batch(number + rank), "a"))
        except ValueError:
            refused = [
                refusal_of(lambda: engine.backward(engine(_batch(0), "a"))),
                refusal_of(engine.step),
                refusal_of(engine.optimizer.step),
            ]
            engine.zero_grad()
            engine.backward(engine(_batch(number + rank), "a"))
        grads = [parameter.grad.clone() for parameter in engine.module.parameters() if parameter.grad is not None]
        engine.step()
    others = [torch.empty_like(grad) for grad in grads]
    for grad, other in zip(grads, others, strict=True):
        other.copy_(grad)
        dist.broadcast(other, src=0)
    equal = all(torch.equal(one, other) for one, other in zip(grads, others, strict=True))
    return {"refused": refused, "equal": equal, "in_step": in_step(rank)}


def mixed(rank: int) -> list[str]:
    """Call loss.backward() behind engine.backward with ZeRO 2; return the refusals: of the mix, and of each apart."""
    engine = _engine("", 2, {})

    def by_hand() -> None:
        engine(_batch(rank), "a").backward()

    engine.backward(engine(_batch(rank), "a"))
    refused = [refusal_of(by_hand)]
    engine.zero_grad()
    refused.append(refusal_of(by_hand))
    refused.append(refusal_of(lambda: engine.backward(engine(_batch(rank), "a"))))
    engine.step()
    return refused


def beside_tensor_parallelism(rank: int) -> dict[str, Any]:
    """Train tp 2 x dp 2 with sharded tokens, whose partial gradients the TP ranks add up; in buckets and at once."""
    results = []
    for zero in ({"stage": 0, "overlap_comm": False}, {"stage": 0, "reduce_bucket_size": 3000}, {"stage": 2}):
        config = {
            "train_micro_batch_size_per_gpu": 2,
            "zero_optimization": zero,
            "tensor_parallel": {"autotp_size": 2},
            "optimizer": {"type": "AdamW", "params": {"lr": 0.01}},
        }
        engine, *_ = initialize(model=build(), config=config, sequence_parallel=True)
        norms, counter = [], CollectiveCounter()
        for number in range(3):
            ids = tokens(10 * number + engine.groups.data_index)
            loss = engine(input_ids=ids, labels=ids).loss
            counter.calls.clear()
            with counter.on():
                engine.backward(loss)
            norms.append(float(engine.clip_grad_norm_(1e9)))
            engine.step()
            norms.append(engine.get_global_grad_norm())
        results.append((engine, norms, len(counter.calls)))
    plain = results[0][0]
    return {
        "equal": [
            all(map(torch.equal, plain.module.parameters(), engine.module.parameters())) for engine, *_ in results
        ],
        "norms": [norms for _, norms, _ in results],
        "calls": [calls for *_, calls in results],
        "in_step": in_step(rank),
    }
