"""Adapters with dropout on sharded layers, beside the unsharded model with the same masks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from tpinit.runtime import initialize
from tpinit.runtime.parallel.rng import RngTracker
from tpinit.runtime.slicing import local_part
from tpinit.runtime.training.gradient_parts import plain_gradient

from support.own_checks import let_change
from support.refusals import in_step
from support.tiny_models import build, tokens

HEADS = 1  # the dimension of [batch, heads, queries, keys]
RATE = 0.3


@contextmanager
def _dropout(function: Any) -> Iterator[None]:
    original, functional.dropout = functional.dropout, function
    try:
        yield
    finally:
        functional.dropout = original


def _loss(model: Any, function: Any) -> torch.Tensor:
    with _dropout(function):
        loss: torch.Tensor = model(input_ids=tokens(), labels=tokens()).loss
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return loss.detach()


def _sharded_loss(model: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the loss of one training step, and its dropout masks in the order of the forward."""
    masks: list[torch.Tensor] = []

    def record(features: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        mask = (torch.rand(features.shape) >= p).float() / (1 - p)
        if not training or not p:
            return features
        masks.append(mask)
        return features * mask

    loss = _loss(model, record)
    return loss, masks


def _unsharded_loss(model: Any, masks: list[list[torch.Tensor]]) -> torch.Tensor:
    """Return the loss of the unsharded model; a mask of sharded features or heads is that of all ranks, joined."""
    order = iter(zip(*masks, strict=True))

    def replay(features: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if not training or not p:
            return features
        parts = next(order)
        if parts[0].shape == features.shape:
            assert all(torch.equal(parts[0], other) for other in parts)
            return features * parts[0]
        assert not torch.equal(parts[0], parts[1])
        return features * torch.cat(parts, HEADS if features.dim() == 4 else -1)

    return _loss(model, replay)


def same_masks(
    rank: int, targets: list[str] | str, attention: float, kind: str = "", hooks: bool = True
) -> dict[str, Any]:
    """Compare a training step, of `kind` "checkpointing", "sequence parallel", "copy" or plain.

    Without `hooks` the adapters' dropout draws from the state that it finds.
    """
    torch.manual_seed(0)
    model = build(attention_dropout=attention, attn_implementation="eager")
    settings = LoraConfig(r=4, target_modules=targets, lora_dropout=RATE, init_lora_weights=False)
    model = get_peft_model(model, settings)
    whole = copy.deepcopy(model)
    kept = RngTracker.share_inside, RngTracker.own_outside
    if not hooks:
        RngTracker.share_inside = RngTracker.own_outside = lambda *_: None  # type: ignore[method-assign, assignment]  # a control
    try:
        config = {"tensor_parallel": {"autotp_size": 2}, "gradient_clipping": 0}
        engine, *_ = initialize(model=model, config=config, sequence_parallel=kind == "sequence parallel")
    finally:
        RngTracker.share_inside, RngTracker.own_outside = kept  # type: ignore[method-assign]  # the control ends
    let_change(engine)  # of functional.dropout, which tells the masks
    if kind == "checkpointing":
        engine.module.gradient_checkpointing_enable()
        engine.module.enable_input_require_grads()
    engine.train()
    trained = copy.deepcopy(engine.module) if kind == "copy" else engine.module
    loss, masks = _sharded_loss(trained)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, masks)
    count = len(masks) // (2 if kind == "checkpointing" else 1)
    try:
        gap = abs(float(loss - _unsharded_loss(whole.train(), [one[:count] for one in gathered])))
    except AssertionError:
        return {"gap": None, "in_step": in_step(rank)}
    gaps = []
    for record in engine.plan.parameters:
        expected, found = (one.get_parameter(record.name).grad for one in (whole, trained))
        if expected is not None:
            part = local_part(expected, record, 2, rank)
            gaps.append(float((part - plain_gradient(found)).abs().max() / expected.abs().max().clamp(min=1e-3)))
    return {"gap": gap, "gradients": max(gaps), "masks": count, "in_step": in_step(rank)}
