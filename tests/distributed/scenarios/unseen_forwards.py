"""Models whose forward does something else in training than in the small batch of planning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from tpinit.reference.errors import TpinitError
from tpinit.runtime import initialize

CONFIG = {"train_micro_batch_size_per_gpu": 2, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
STEPS = 6


class Net(nn.Module):
    """A pair of layers with a step of one of `INNER` between them, which may depend on anything."""

    def __init__(self, inner: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.first, self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.gate = nn.Parameter(torch.zeros(()))
        self.register_buffer("clock", torch.zeros(()))
        self.inner, self.calls, self.kind, self.factor = inner, 0, "plain", 0.0

    def forward(self, x: torch.Tensor, scale: float | None = None, shift: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        self.clock += 1
        hidden = self.first(x)
        if self.kind == "skipped":
            return hidden
        inside: torch.Tensor = self.inner(self, self.up(hidden), x, scale, shift)
        return hidden + self.down(inside)


def whole(hidden: torch.Tensor) -> torch.Tensor:
    """Return what no rank can compute of its part of the features."""
    return hidden / hidden.norm(dim=-1, keepdim=True)


def either(condition: bool, hidden: torch.Tensor) -> torch.Tensor:
    return whole(hidden) if condition else hidden.tanh()


INNER: dict[str, Callable[..., torch.Tensor]] = {
    "keyword": lambda net, h, x, scale, shift: either(scale is not None, h),
    "calls": lambda net, h, x, scale, shift: either(net.calls == 4, h),
    "attribute": lambda net, h, x, scale, shift: either(net.kind == "other", h),
    "frozen": lambda net, h, x, scale, shift: either(not net.up.weight.requires_grad, h),
    "factor": lambda net, h, x, scale, shift: h.tanh() + net.factor * whole(h),
    "rows": lambda net, h, x, scale, shift: either(len(x) > 8, h),
    "one row": lambda net, h, x, scale, shift: either(len(x) == 1, h),
    "squeezed": lambda net, h, x, scale, shift: h.tanh() * h.squeeze().std(0, correction=0),
    "clock": lambda net, h, x, scale, shift: torch.where(net.clock > 3, whole(h), h.tanh()),
    "gate": lambda net, h, x, scale, shift: h.tanh() + net.gate * whole(h),
    "large": lambda net, h, x, scale, shift: h.tanh() - (h.amax(-1, keepdim=True) - 8).relu(),
    "rows, elementwise": lambda net, h, x, scale, shift: h.relu() if len(x) > 8 else h.tanh(),
    "calls, elementwise": lambda net, h, x, scale, shift: h.relu() if net.calls == 4 else h.tanh(),
    "factor, elementwise": lambda net, h, x, scale, shift: h.tanh() + net.factor * h,
    "shift": lambda net, h, x, scale, shift: h.tanh() if shift is None else (h + shift[:, None]).tanh(),
    "where, elementwise": lambda net, h, x, scale, shift: torch.where(net.clock > 3, h.relu(), h.tanh()),
    "skipped": lambda net, h, x, scale, shift: h.tanh(),
}
RIGHT = tuple(name for name in INNER if "elementwise" in name or name in ("shift", "skipped"))
ROWS = {"rows": 9, "rows, elementwise": 9, "one row": 1, "squeezed": 1}
MORE: dict[str, dict[str, Any]] = {"keyword": {"scale": 2.0}, "shift": {"shift": torch.ones(2)}}


def change(net: Any, name: str) -> None:
    """Change a model before its fourth step."""
    if name == "attribute":
        net.kind = "other"
    elif name == "skipped":
        net.kind = "skipped"
    elif name == "frozen":
        net.up.weight.requires_grad_(False)
    elif name.startswith("factor"):
        net.factor = 0.5


def train_both(rank: int, name: str, verify: str) -> str:
    """Train a model sharded and unsharded; return "exact", "WRONG", or "refused at STEP: ..."."""
    torch.manual_seed(0)
    model = Net(INNER[name]).train()
    unsharded = copy.deepcopy(model)
    optimizer = torch.optim.SGD(unsharded.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(3)
    example = {"x": torch.randn(2, 8, generator=generator)}
    config = {**CONFIG, "tensor_parallel": {"autotp_size": dist.get_world_size()}, "gradient_clipping": 0}
    step = -1
    try:
        engine, *_ = initialize(model=model, config=config, example=example, verify=verify)
        for step in range(STEPS):
            late = step >= 3
            batch = {"x": torch.randn(ROWS.get(name, 2) if late else 2, 8, generator=generator)}
            batch["x"] *= 50.0 if late and name == "large" else 1.0
            batch.update(MORE.get(name, {}) if late else {})
            if step == 3:
                change(unsharded, name)
                change(engine.module, name)
            expected = functional.mse_loss(unsharded(**batch), torch.ones(()).expand(len(batch["x"]), 16))
            expected.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss = functional.mse_loss(engine(**batch), torch.ones(()).expand(len(batch["x"]), 16))
            engine.backward(loss)
            engine.step()
            if abs(float(loss.detach() - expected.detach())) > 1e-5 * abs(float(expected.detach())):
                return "WRONG"
    except TpinitError as error:
        return f"refused at {step}: {type(error).__name__}: {error}"
    return "exact"


def train_all(rank: int, verify: str = "auto") -> dict[str, str]:
    """Train every model; return what came of each."""
    return {name: train_both(rank, name, verify) for name in INNER}
