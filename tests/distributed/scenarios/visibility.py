"""A user's loss functions and harmless hooks on two ranks: the same losses and tensors as without sharding."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional
from tpinit.runtime import initialize

from scenarios.engine import config
from support.own_checks import let_change
from support.refusals import error_of
from support.tiny_models import build, tokens


def smoothed(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **_: Any) -> torch.Tensor:
    """A loss that reads all logits: cross-entropy with smoothed labels."""
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.3)


smoothed.__name__ = smoothed.__qualname__ = "ForCausalLMLoss"


@contextlib.contextmanager
def patched_cross_entropy() -> Iterator[None]:
    losses: Any = sys.modules["transformers.loss.loss_utils"]
    original = losses.fixed_cross_entropy
    losses.fixed_cross_entropy = lambda source, target, *_, **__: functional.cross_entropy(
        source, target, label_smoothing=0.3
    )
    try:
        yield
    finally:
        losses.fixed_cross_entropy = original


def compare_losses(rank: int) -> dict[str, float]:
    """Return, for each way to set a loss, how far the sharded model's loss is from the unsharded one's."""
    ids = tokens()
    gaps = {}
    for case in ("own", "before", "after", "patched", "after and removed"):
        torch.manual_seed(0)
        whole = build()
        torch.manual_seed(0)
        model = build()
        for one in (whole, model):
            if case == "before":
                one.loss_function = smoothed
        engine, *_ = initialize(model=model, config=config())
        for one in (whole, engine.module):
            if case.startswith("after"):
                one.loss_function = smoothed
        with patched_cross_entropy() if case == "patched" else contextlib.nullcontext():
            expected, found = whole(input_ids=ids, labels=ids).loss, engine(input_ids=ids, labels=ids).loss
        if case == "own":
            compiled = torch.compile(engine.module, backend="eager")
            gaps["compiled"] = float((expected - compiled(input_ids=ids, labels=ids).loss).abs().detach())
        if case == "after and removed":
            plain = build().loss_function
            whole.loss_function = engine.module.loss_function = plain
            expected, found = whole(input_ids=ids, labels=ids).loss, engine(input_ids=ids, labels=ids).loss
        gaps[case] = float((expected - found).abs().detach())
    return gaps


def compare_hooks(rank: int) -> dict[str, float]:
    """Return, for each module with hooks that changed its output, how far its inputs and outputs are from the whole."""
    ids = tokens()
    gaps = {}
    for name in ("model.embed_tokens", "lm_head", "model.layers.0.mlp", "model.norm", "model.layers.1"):
        seen: list[list[torch.Tensor]] = []
        for sharded in (False, True):
            torch.manual_seed(0)
            model = build()
            seen.append([])

            def record(_: Any, args: Any, output: Any, found: list[torch.Tensor] = seen[-1]) -> Any:
                first = output[0] if isinstance(output, tuple) else output
                found.extend([args[0].detach().float(), first.detach().clone()])
                return (first * 1.5, *output[1:]) if isinstance(output, tuple) else first * 1.5

            model.get_submodule(name).register_forward_hook(record)
            run: Any = initialize(model=model, config=config())[0] if sharded else model
            seen[-1].append(run(input_ids=ids, labels=ids).loss.detach())
        gaps[name] = max(float((one - other).abs().max()) for one, other in zip(*seen, strict=True))
    return gaps


READS: dict[str, Any] = {
    "mlp": lambda self, x: self.down_proj(torch.relu(x @ self.up_proj.weight.t())),
    "bare": lambda self, x: self.down_proj(functional.linear(x, self.up_proj.weight)),
    "data": lambda self, x: self.down_proj(functional.linear(x, self.up_proj.weight.data)),
    "item": lambda self, x: x * self.up_proj.weight.sum().item(),
}


def read_weights_in_a_forward(rank: int) -> dict[str, Any]:
    """Replace forwards after `initialize` by ones that read sharded weights; return the errors, and what is legal."""
    model = build()
    engine, *_ = initialize(model=model, config=config())
    let_change(engine)
    mlp, ids, results = model.model.layers[0].mlp, tokens(), {}
    for case, read in READS.items():
        mlp.forward = types.MethodType(read, mlp)
        results[case] = error_of(lambda: engine(input_ids=ids, labels=ids))
        del mlp.forward
    embedding = model.model.embed_tokens

    def tied(self: Any, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, embedding.weight)[..., : x.shape[-1]]

    mlp.forward = types.MethodType(tied, mlp)
    results["embedding"] = error_of(lambda: engine(input_ids=ids, labels=ids))

    def metadata(self: Any, x: torch.Tensor) -> torch.Tensor:
        weight = self.up_proj.weight
        assert isinstance(weight, torch.nn.Parameter)
        assert weight.requires_grad
        return (
            type(self).forward(self, x.to(weight.device, weight.dtype))
            * (weight.dim() + weight.size(0))
            / (weight.ndim + weight.shape[0])
        )

    mlp.forward = types.MethodType(metadata, mlp)
    loss = engine(input_ids=ids, labels=ids).loss
    del mlp.forward
    results["metadata"] = float(loss.detach()) - float(engine(input_ids=ids, labels=ids).loss.detach())
    results["outside"] = mlp.up_proj.weight is dict(model.named_parameters())["model.layers.0.mlp.up_proj.weight"]
    return results
