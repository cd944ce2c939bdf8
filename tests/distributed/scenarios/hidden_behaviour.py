"""Models whose forward does something that planning does not show, trained sharded and unsharded."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from tpinit.reference.errors import TpinitError
from tpinit.runtime import from_config, initialize

CONFIG = {"train_micro_batch_size_per_gpu": 2, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
SCALE = {"factor": 2.0}
Step = Callable[[Any, torch.Tensor], torch.Tensor]


class Double(torch.autograd.Function):
    """Doubles in the forward, and clips the gradient by its own norm in the backward."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
        return value * 2

    @staticmethod
    def backward(context: Any, grad: torch.Tensor) -> torch.Tensor:
        return 2 * grad / grad.norm().clamp(min=1e-3)


class Straight(torch.autograd.Function):
    """Rounds in the forward, and passes the gradient on."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
        return value.round()

    @staticmethod
    def backward(context: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


class Block(nn.Module):
    """An MLP whose inner step is one of `STEPS`."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.step, self.calls = step, 0
        self.register_buffer("average", torch.ones(()))

    @property
    def tied(self) -> torch.Tensor:
        return self.up.weight

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        self.scale = scale
        return x + self.step(self, x)


class Net(nn.Module):
    """Two blocks: the first with a step of its own, the second a plain one."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.first, self.second = Block(step), Block(STEPS["plain"])

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        return self.second(self.first(x, scale))


def counted(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.calls += 1
    inner = self.up(x)
    return self.down(inner - inner.mean(-1, keepdim=True) if self.calls > 2 else inner)


def averaged(self: Any, x: torch.Tensor) -> torch.Tensor:
    inner = self.up(x)
    with torch.no_grad():
        self.average.mul_(0.5).add_(0.5 * inner.pow(2).mean())
    return self.down(inner / self.average)


def penalised(self: Any, x: torch.Tensor) -> torch.Tensor:
    inner = self.up(x).relu()
    return self.down(inner) * (1 + inner.detach().mean())


def without_gradient(self: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        gate = self.gate(x).sigmoid()
    return self.down(self.up(x) * gate)


def in_place(self: Any, x: torch.Tensor) -> torch.Tensor:
    inner = x.clone()
    inner.mul_(2)
    return self.down(self.up(inner).relu_())


def over_all(inner: torch.Tensor, condition: bool) -> torch.Tensor:
    return inner - inner.mean(-1, keepdim=True) if condition else inner


STEPS: dict[str, Step] = {
    "plain": lambda self, x: self.down(functional.silu(self.gate(x)) * self.up(x)),
    "gradient by its norm": lambda self, x: self.down(Double.apply(self.up(x))),
    "straight through": lambda self, x: self.down(Straight.apply(self.up(x) * 4)),
    "in place": in_place,
    "no_grad": without_gradient,
    "detach": lambda self, x: self.down(self.up(x) * self.gate(x).detach()),
    "detached mean": penalised,
    "training": lambda self, x: self.down(over_all(self.up(x), self.training)),
    "grad enabled": lambda self, x: self.down(over_all(self.up(x), torch.is_grad_enabled())),
    "length": lambda self, x: self.down(over_all(self.up(x), x.shape[1] > 5)),
    "batch": lambda self, x: self.down(over_all(self.up(x), len(x) > 2)),
    "values": lambda self, x: self.down(over_all(self.up(x), bool(x[0, 0, 0] > 0.5))),
    "global": lambda self, x: self.down(over_all(self.up(x) * SCALE["factor"], SCALE["factor"] > 3)),
    "keyword": lambda self, x: self.down(over_all(self.up(x), self.scale is not None)),
    "property": lambda self, x: self.down(functional.linear(x, self.tied)),
    "copied": lambda self, x: self.down(functional.linear(x, self.up.weight.clone(), self.up.bias)),
    "functional call": lambda self, x: self.down(functional_call(self.up, dict(self.up.named_parameters()), (x,))),
    "scaled call": lambda self, x: self.down(
        functional_call(self.up, {name: 2 * value for name, value in self.up.named_parameters()}, (x,))
    ),
    "counted": counted,
    "average": averaged,
    "number": lambda self, x: (lambda inner: self.down(inner / float(inner.detach().abs().max())))(self.up(x)),
}


def losses(model: Any, step: Callable[[torch.Tensor], None], batches: list[dict[str, torch.Tensor]]) -> list[float]:
    found = []
    for batch in batches:
        loss = model(**batch).pow(2).mean()
        step(loss)
        found.append(float(loss.detach()))
    return found


def batches_of(name: str) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    rows, length = (3 if name == "batch" else 2), (7 if name == "length" else 4)
    batches: list[dict[str, torch.Tensor]] = [{"x": torch.rand(rows, length, 8, generator=generator)} for _ in range(4)]
    if name == "values":
        batches[2]["x"][0, 0, 0] = 0.9
    if name == "keyword":
        batches = [{**batch, "scale": torch.ones(())} for batch in batches]
    return batches


def train_both(rank: int, name: str, verify: str | None) -> str:
    """Train a model sharded and unsharded; return "exact", "refused: ..." or "WRONG: ..."."""
    torch.manual_seed(0)
    model = Net(STEPS[name]).train()
    unsharded = copy.deepcopy(model)
    batches = batches_of(name)
    example = {"x": torch.full((2, 4, 8), 0.25)}
    if name == "keyword":  # the example has the keywords that training passes
        example["scale"] = torch.ones(())
    optimizer = torch.optim.SGD(unsharded.parameters(), lr=0.1)

    def step(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    config = {**CONFIG, "tensor_parallel": {"autotp_size": dist.get_world_size()}, "gradient_clipping": 0}
    expected = losses(unsharded, step, batches)
    try:
        engine, *_ = initialize(model=model, config=config, example=example, verify=verify)

        def engine_step(loss: torch.Tensor) -> None:
            engine.backward(loss)
            engine.step()

        actual = losses(engine, engine_step, batches)
    except TpinitError as error:
        return f"refused: {type(error).__name__}: {error}"
    if all(abs(one - other) <= 1e-4 * abs(other) for one, other in zip(actual, expected, strict=True)):
        return "exact"
    return f"WRONG: {actual} {expected}"


def all_models(rank: int, verify: str | None = "auto") -> dict[str, str]:
    """Train every model; return what came of each."""
    return {name: train_both(rank, name, verify) for name in STEPS}


def build_own() -> nn.Module:
    return Net(STEPS["plain"])


def probed_by_default(rank: int) -> dict[str, Any]:
    """Initialize a model of an own class in each way; return the lines that the log has about the probe."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]  # collects lines
    logger = logging.getLogger("tpinit")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    config = {**CONFIG, "tensor_parallel": {"autotp_size": dist.get_world_size()}}
    example = {"x": torch.full((2, 4, 8), 0.25)}
    found: dict[str, Any] = {}
    try:
        for verify in ("auto", "none", None):
            lines.clear()
            initialize(model=build_own(), config=config, example=example, verify=verify)
            found[f"initialize {verify}"] = [line for line in lines if "probe" in line]
            lines.clear()
            from_config(build_own, seed=1, config=config, example=example, verify=verify)
            found[f"from_config {verify}"] = [line for line in lines if "probe" in line]
    finally:
        logger.removeHandler(handler)
    return found
