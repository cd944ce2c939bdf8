"""Cross-entropy over logits that are cut by vocabulary: they are never gathered in training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn import functional
from tpinit.runtime.parallel.linear import VocabParallelHead

__all__ = ["asks_for_it", "cross_entropy", "enable_loss_parallel"]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, target: torch.Tensor, begin: int, ignored: int, group: ProcessGroup
    ) -> torch.Tensor:
        # Each rank's own largest logit, its sum beside that, and the target's logit where it is here: one gather.
        largest = logits.amax(dim=-1)
        weights = (logits - largest.unsqueeze(-1)).exp_()
        here = (target >= begin) & (target < begin + logits.shape[-1])
        local = torch.where(here, target - begin, 0).unsqueeze(-1)
        found = logits.gather(-1, local).squeeze(-1).masked_fill(~here, 0)
        own = torch.stack([largest, weights.sum(dim=-1), found])
        every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(every, own, group=group)
        tops, sums, hits = torch.stack(every, dim=1)
        top = tops.amax(dim=0)
        total = (sums * (tops - top).exp()).sum(dim=0)
        kept = target != ignored
        ctx.save_for_backward(weights, (largest - top).exp() / total, local, here & kept, kept)
        return torch.where(kept, top + total.log() - hits.sum(dim=0), 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        weights, share, local, here, kept = ctx.saved_tensors
        scale = torch.where(kept, grads[0], 0)
        grad = weights * (scale * share).unsqueeze(-1)
        grad.scatter_add_(-1, local, -(scale * here).unsqueeze(-1))
        return grad, None, None, None, None


def cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, begin: int, group: ProcessGroup, ignore_index: int = -100
) -> torch.Tensor:
    """Return the cross-entropy [n] of logits [n, vocabulary / ranks] that begin at `begin`, for targets [n].

    One gather, of 3 n numbers of each rank, forward, none backward. A target equal to `ignore_index` gives 0.
    """
    return _CrossEntropy.apply(logits, target, begin, ignore_index, group)  # type: ignore[no-untyped-call, no-any-return]  # torch leaves apply() untyped


def _causal_loss(original: Any, begin: int, length: int, whole: int, group: ProcessGroup) -> Any:
    """Return transformers' loss of a causal language model, for this rank's part of the logits or the whole."""

    def loss(
        logits: torch.Tensor,
        labels: torch.Tensor,
        vocab_size: int,
        num_items_in_batch: Any = None,
        ignore_index: int = -100,
        shift_labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if logits.shape[-1] != length or length == whole:
            return original(
                logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels=shift_labels, **kwargs
            )
        if shift_labels is None:
            shift_labels = functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        target = shift_labels.reshape(-1).to(logits.device)
        each = cross_entropy(logits.float().reshape(-1, length), target, begin, group, ignore_index)
        if num_items_in_batch is None:
            return each.sum() / (target != ignore_index).sum()
        return each.sum() / num_items_in_batch

    return loss


@lru_cache(maxsize=256)
def asks_for_it(forward: Callable[..., Any]) -> bool:
    """Tell whether a model's forward hands its logits to its `loss_function`, and does not compute a loss itself."""
    try:
        text = inspect.getsource(inspect.unwrap(forward))
    except (OSError, TypeError):
        return False
    return "self.loss_function(" in text


def enable_loss_parallel(
    model: nn.Module, head: VocabParallelHead, begin: int, length: int, whole: int, group: ProcessGroup
) -> None:
    """Let the model compute its own loss from this rank's logits, where it has transformers' loss and gets labels.

    Then the output has no logits. Without labels, without gradients, for a tuple and for any other loss, the
    logits are whole.
    """
    loss: Any = getattr(model, "loss_function", None)
    if getattr(loss, "__name__", "") != "ForCausalLMLoss" or length == whole or not asks_for_it(type(model).forward):
        return
    model.loss_function = _causal_loss(loss, begin, length, whole, group)
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = signature.bind_partial(*args, **kwargs).arguments
        extra = given.get("kwargs", {})
        asked = given.get("labels", extra.get("labels")) is not None
        plain = given.get("return_dict", extra.get("return_dict")) is not False
        head.keep_local_logits = asked and plain and torch.is_grad_enabled()

    def leave(_: nn.Module, __: Any, ___: Any, output: Any) -> Any:
        if not head.keep_local_logits:
            return output
        head.keep_local_logits = False
        if not isinstance(output, Mapping) or "logits" not in output:
            return output
        return type(output)(**{key: value for key, value in output.items() if key != "logits"})

    model.register_forward_pre_hook(enter, with_kwargs=True)
    model.register_forward_hook(leave, with_kwargs=True, always_call=True)
