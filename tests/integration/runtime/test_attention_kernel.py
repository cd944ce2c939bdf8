"""What the step proof assumes of attention in one operation: each head of each sample is computed by itself."""

from typing import Any

import pytest
import torch
from tpinit.step.specs import KERNELS

FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
BATCH, HEADS, TOKENS, SIZE = 2, 4, 5, 8


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(shared: int) -> list[torch.Tensor]:
    heads = (HEADS, HEADS // shared, HEADS // shared, HEADS)
    return [drawn(seed, BATCH, count, TOKENS, SIZE) for seed, count in enumerate(heads)]


def kernel(query: Any, key: Any, value: Any, grad: Any, causal: bool, mask: Any) -> list[torch.Tensor]:
    """Return the result, its statistics and the three gradients, as torch computes them in two operations."""
    result, statistics = FORWARD(query, key, value, 0.0, causal, attn_mask=mask)
    grads = BACKWARD(grad, query, key, value, result, statistics, 0.0, causal, attn_mask=mask)
    return [result, statistics, *grads]


def decomposed(query: Any, key: Any, value: Any, grad: Any, causal: bool, mask: Any) -> list[torch.Tensor]:
    """Return the same from a softmax and products."""
    held = [one.clone().requires_grad_() for one in (query, key, value)]
    group = query.shape[1] // key.shape[1]
    scores = held[0] @ held[1].repeat_interleave(group, 1).transpose(-1, -2) / SIZE**0.5
    if causal:
        scores = scores.masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), -torch.inf)
    if mask is not None:
        scores = scores + mask
    result = scores.softmax(-1) @ held[2].repeat_interleave(group, 1)
    return [result.detach(), scores.logsumexp(-1).detach(), *torch.autograd.grad(result, held, grad)]


def by_heads(function: Any, given: list[torch.Tensor], causal: bool, mask: Any, shared: int) -> list[torch.Tensor]:
    """Return what a function gives for each sample and group of heads alone, put together."""
    groups = given[1].shape[1]
    rows = []
    for sample in range(BATCH):
        parts = [function(*(take(one, sample, at, groups) for one in given), causal, mask) for at in range(groups)]
        rows.append([torch.cat(each, 1) for each in zip(*parts, strict=True)])
    return [torch.cat(each) for each in zip(*rows, strict=True)]


def take(tensor: torch.Tensor, sample: int, group: int, groups: int) -> torch.Tensor:
    return tensor[sample : sample + 1].chunk(groups, 1)[group]


def mixed(*args: Any) -> list[torch.Tensor]:
    """Return what a kernel would give that mixes heads: the control."""
    result, *rest = kernel(*args)
    return [result - result.mean(1, keepdim=True), *rest]


def agree(ones: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.allclose(one, other, atol=1e-9) for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize(("causal", "masked"), [(False, False), (True, False), (False, True)])
def test_heads_are_computed_by_themselves(causal, masked, shared):
    assert {FORWARD.name().split("::")[1], BACKWARD.name().split("::")[1]} == KERNELS
    given, mask = inputs(shared), drawn(9, 1, 1, TOKENS, TOKENS) if masked else None
    whole = kernel(*given, causal, mask)
    assert agree(whole, decomposed(*given, causal, mask))
    assert agree(whole, by_heads(kernel, given, causal, mask, shared))
    assert not agree(mixed(*given, causal, mask), by_heads(mixed, given, causal, mask, shared))
