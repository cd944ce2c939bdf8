"""Cross-entropy over vocab-parallel logits: training never gathers the logits (torchtitan's loss parallel)."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup
from torch.nn import functional
from tpinit.runtime.errors import EngineError
from tpinit.runtime.internals.torch_private import attached_hooks
from tpinit.runtime.internals.transformers_private import (
    calls_loss_function,
    is_causal_loss,
    is_own_forward,
    set_loss_function,
)
from tpinit.runtime.parallel.collectives import CollectiveKind
from tpinit.runtime.parallel.first_order import first_order
from tpinit.runtime.parallel.linear import VocabParallelHead
from tpinit.runtime.parallel.missing_logits import without_logits
from tpinit.runtime.parallel.tally import issue, place_of
from tpinit.runtime.parallel.vocabulary import check_targets

__all__ = [
    "LOSS_COLLECTIVE",
    "LOSS_STATISTICS",
    "computes_causal_loss",
    "cross_entropy",
    "enable_loss_parallel",
    "gather_logits_always",
]

LOSS_STATISTICS = 3
"""The fp32 values that a rank sends for each token: its largest logit, its sum of exponentials, the target's logit."""

LOSS_COLLECTIVE = CollectiveKind.ALL_GATHER
"""The one collective of `cross_entropy`, in the forward pass."""


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, target: torch.Tensor, begin: int, ignored: int, group: ProcessGroup
    ) -> torch.Tensor:
        local_max = logits.amax(dim=-1)
        exponentials = (logits - local_max.unsqueeze(-1)).exp_()
        is_local = (target >= begin) & (target < begin + logits.shape[-1])
        local_target = torch.where(is_local, target - begin, 0).unsqueeze(-1)
        target_logit = logits.gather(-1, local_target).squeeze(-1).masked_fill(~is_local, 0)
        # [3, n] on each rank; the sum is relative to the rank's own maximum.
        own = torch.stack([local_max, exponentials.sum(dim=-1), target_logit])
        gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        issue("all_gather", gathered, own, group=group)
        maxima, sums, target_logits = torch.stack(gathered, dim=1)
        maximum = maxima.amax(dim=0)
        total = (sums * (maxima - maximum).exp()).sum(dim=0)
        is_counted = target != ignored
        ctx.save_for_backward(
            exponentials, (local_max - maximum).exp() / total, local_target, is_local & is_counted, is_counted
        )
        return torch.where(is_counted, maximum + total.log() - target_logits.sum(dim=0), 0)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        exponentials, to_probability, local_target, is_local, is_counted = ctx.saved_tensors
        scale = torch.where(is_counted, grads[0], 0)
        grad = exponentials * (scale * to_probability).unsqueeze(-1)
        grad.scatter_add_(-1, local_target, -(scale * is_local).unsqueeze(-1))
        return grad, None, None, None, None


def cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, begin: int, group: ProcessGroup, ignore_index: int = -100
) -> torch.Tensor:
    """Return the cross-entropy [n] of this rank's logits [n, vocabulary / ranks] for targets [n].

    `begin` is the first vocabulary index of this rank. The loss of a target equal to `ignore_index` is 0. Issues one
    all-gather of LOSS_STATISTICS * n values a rank in the forward pass, and none in the backward pass.
    """
    return _CrossEntropy.apply(logits, target, begin, ignore_index, group)  # type: ignore[no-untyped-call, no-any-return]  # torch leaves apply() untyped


def _causal_loss(
    original: Any, head: VocabParallelHead, begin: int, length: int, vocabulary: int, group: ProcessGroup
) -> Any:
    """Return a replacement for transformers' causal language model loss that takes sharded or whole logits."""

    def loss(
        logits: torch.Tensor,
        labels: torch.Tensor,
        vocab_size: int,
        num_items_in_batch: Any = None,
        ignore_index: int = -100,
        shift_labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if logits.shape[-1] != length or length == vocabulary:
            return original(
                logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels=shift_labels, **kwargs
            )
        if shift_labels is None:
            if not isinstance(labels, torch.Tensor):
                raise EngineError(f"labels are a {type(labels).__name__}, and must be a tensor of token ids")
            shift_labels = functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        local_logits = logits.float().reshape(-1, length)
        target = shift_labels.reshape(-1).to(logits.device)
        target = check_targets(target, len(local_logits), vocabulary, ignore_index)
        place = place_of(head)
        with contextlib.nullcontext() if place is None else place.runs():
            losses = cross_entropy(local_logits, target, begin, group, ignore_index)
        if num_items_in_batch is None:
            return losses.sum() / (target != ignore_index).sum()
        return losses.sum() / num_items_in_batch

    return loss


def computes_causal_loss(model: nn.Module) -> bool:
    """Return whether `model.forward` passes its logits to transformers' causal language model loss, and only there.

    This is the loss that `enable_loss_parallel` replaces. Both are compared with transformers' own code: a user's
    function of the same name, a patched one, and a user's forward get gathered logits.
    """
    forward = inspect.unwrap(getattr(model.forward, "__func__", model.forward))
    is_own = is_causal_loss(getattr(model, "loss_function", None)) and is_own_forward(forward)
    return is_own and calls_loss_function(forward)


def enable_loss_parallel(
    model: nn.Module, head: VocabParallelHead, begin: int, length: int, vocabulary: int, group: ProcessGroup
) -> None:
    """Let the model compute its loss from this rank's logits [begin, begin + length) of the vocabulary.

    Applies to transformers' causal language model loss, in a training forward with labels and gradients; reading the
    logits of its output raises MissingOutputError. The loss function is replaced for the time of such a forward only,
    so one that is set later is used. Without labels or gradients, in evaluation mode, with `return_dict=False`, with
    hooks on the head, which see all logits, and for any other loss the logits are gathered.
    """
    if length == vocabulary or not computes_causal_loss(model):
        return
    loss = _causal_loss(model.loss_function, head, begin, length, vocabulary, group)
    restore: list[Callable[[], None]] = []
    head_module: Any = head
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if head.always_gathers or not module.training:
            return
        arguments = signature.bind_partial(*args, **kwargs).arguments
        extra = arguments.get("kwargs", {})
        has_labels = arguments.get("labels", extra.get("labels")) is not None
        requested = arguments.get("return_dict", extra.get("return_dict"))
        returns_dict = getattr(getattr(module, "config", None), "return_dict", True) if requested is None else requested
        shards_loss = has_labels and returns_dict and torch.is_grad_enabled() and not attached_hooks(head_module)
        head.keep_local_logits = shards_loss and computes_causal_loss(model)
        if head.keep_local_logits:
            restore.append(set_loss_function(model, loss))

    def leave(_: nn.Module, __: Any, ___: Any, output: Any) -> Any:
        if not head.keep_local_logits:
            return output
        head.keep_local_logits = False
        restore.pop()()
        return _without_local_logits(output)

    # `enter` reads code objects and `leave` makes a class, which torch.compile can't trace.
    model.register_forward_pre_hook(torch.compiler.disable(enter), with_kwargs=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    model.register_forward_hook(torch.compiler.disable(leave), with_kwargs=True, always_call=True)  # type: ignore[no-untyped-call]  # the same


def _without_local_logits(output: Any) -> Any:
    """Return the output of a forward whose head kept its local logits: they can't be read, in inner outputs neither."""
    if output is None:  # the forward raised
        return output
    if not isinstance(output, Mapping):
        raise EngineError(
            f"the forward returned a {type(output).__name__}, and its logits are this rank's part of the vocabulary: "
            "return a ModelOutput, or use initialize(..., gather_logits=True)"
        )
    for key, value in output.items():
        if isinstance(value, Mapping):
            output[key] = _without_local_logits(value)  # type: ignore[index]  # a ModelOutput, a mutable mapping
    return without_logits(output) if "logits" in output else output


def gather_logits_always(model: nn.Module) -> None:
    """Let a sharded model gather its logits in training with labels too, and compute the loss from all of them."""
    for module in model.modules():
        if isinstance(module, VocabParallelHead):
            module.__dict__["always_gathers"] = True
