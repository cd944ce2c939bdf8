"""The loss of logits whose vocabulary is sharded: that of torch on all logits, for every option of the caller."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.parallel.loss import _causal_loss, cross_entropy
from tpinit.runtime.shards import shard

from support.thread_ranks import over_ranks

VOCABULARY, BATCH, TOKENS = 11, 2, 5


def given(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(BATCH, TOKENS, VOCABULARY, generator=random) * 4 + 20
    return logits, torch.randint(0, VOCABULARY, (BATCH, TOKENS), generator=random)


def sharded(ranks: int, logits: torch.Tensor, call: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return (loss, gradient of the whole logits, zero outside of the rank's part) of each rank."""

    def work(view: GroupView) -> tuple[torch.Tensor, torch.Tensor]:
        begin, length = shard(VOCABULARY, ranks, view.position)
        whole = logits.clone().requires_grad_()
        loss = call(view.group, begin, length, whole[..., begin : begin + length])
        loss.sum().backward()
        assert whole.grad is not None
        return loss.detach(), whole.grad

    return over_ranks(ranks, work)


def check(found: list[tuple[torch.Tensor, torch.Tensor]], logits: torch.Tensor, loss_of: Any) -> None:
    whole = logits.clone().requires_grad_()
    wanted = loss_of(whole)
    wanted.sum().backward()
    for loss, _ in found:
        torch.testing.assert_close(loss, wanted.detach())
    torch.testing.assert_close(sum(grad for _, grad in found), whole.grad)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("ignored", [-100, 3, -1])
def test_the_loss_of_each_token_and_its_gradient_are_torchs(ranks: int, ignored: int) -> None:
    logits, target = given()
    flat, target = logits.reshape(-1, VOCABULARY), target.reshape(-1)
    target[::4] = ignored
    target[1:4] = torch.tensor([0, VOCABULARY - 1, shard(VOCABULARY, ranks, 1)[0]])
    found = sharded(ranks, flat, lambda group, begin, _, part: cross_entropy(part, target, begin, group, ignored))
    check(found, flat, lambda whole: functional.cross_entropy(whole, target, ignore_index=ignored, reduction="none"))


def test_large_logits_do_not_overflow() -> None:
    logits, target = given()
    flat = logits.reshape(-1, VOCABULARY) * 1000
    found = sharded(2, flat, lambda group, begin, _, part: cross_entropy(part, target.reshape(-1), begin, group))
    check(found, flat, lambda whole: functional.cross_entropy(whole, target.reshape(-1), reduction="none"))


def causal(labels: Any, **options: Any) -> Any:
    def call(group: Any, begin: int, length: int, part: torch.Tensor) -> torch.Tensor:
        def original(*_: Any, **__: Any) -> Any:
            raise AssertionError("the whole logits are not there")

        loss = _causal_loss(original, nn.Module(), begin, length, VOCABULARY, group)  # type: ignore[arg-type]  # no place
        return loss(part, labels, VOCABULARY, **options)

    return call


def reference(labels: torch.Tensor, ignored: int = -100, items: Any = None) -> Any:
    """What transformers' causal loss is: of token t the label is that of t + 1; the sum over the number of labels."""

    def loss_of(whole: torch.Tensor) -> torch.Tensor:
        shifted = functional.pad(labels, (0, 1), value=ignored)[..., 1:].reshape(-1)
        total = functional.cross_entropy(whole.reshape(-1, VOCABULARY), shifted, ignore_index=ignored, reduction="sum")
        return total / (items if items is not None else (shifted != ignored).sum())

    return loss_of


@pytest.mark.parametrize("ignored", [-100, 4])
def test_a_causal_loss_is_the_mean_over_labels_that_are_not_ignored(ignored: int) -> None:
    logits, labels = given()
    labels[0, 2] = labels[1, 4] = ignored
    check(sharded(2, logits, causal(labels, ignore_index=ignored)), logits, reference(labels, ignored))


@pytest.mark.parametrize("items", [3, torch.tensor(40)])
def test_a_causal_loss_is_divided_by_the_number_of_items_of_the_whole_batch(items: Any) -> None:
    logits, labels = given()
    check(sharded(2, logits, causal(labels, num_items_in_batch=items)), logits, reference(labels, items=items))


def test_labels_that_are_shifted_already_are_not_shifted_again() -> None:
    logits, labels = given()
    found = sharded(2, logits, causal(None, shift_labels=labels))
    check(found, logits, lambda whole: functional.cross_entropy(whole.reshape(-1, VOCABULARY), labels.reshape(-1)))


def test_logits_in_bf16_have_their_loss_in_fp32() -> None:
    logits, labels = given()
    logits = logits.bfloat16()
    for loss, _ in sharded(2, logits, causal(labels)):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, reference(labels)(logits.float()))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([[1, 2]], "labels are a list"),
        (
            torch.full((BATCH, TOKENS), VOCABULARY),
            rf"label {VOCABULARY}: legal labels are 0 to {VOCABULARY - 1}, and -100",
        ),
        (torch.full((BATCH, TOKENS), -1), "label -1"),
        (torch.zeros(BATCH, TOKENS - 1, dtype=torch.long), "8 labels for 10 tokens"),
        (torch.zeros(BATCH, TOKENS), "must be integers"),
    ],
)
def test_labels_that_are_none_are_refused_before_a_collective(labels: Any, says: str) -> None:
    with pytest.raises(EngineError, match=says):
        sharded(2, given()[0], causal(labels))


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.int8, torch.uint8])
def test_labels_of_every_integer_type_count(kind: torch.dtype) -> None:
    logits, labels = given()
    check(sharded(2, logits, causal(labels.to(kind), ignore_index=0)), logits, reference(labels, 0))


@pytest.mark.parametrize(("length", "width"), [(VOCABULARY, VOCABULARY), (5, VOCABULARY)])
def test_whole_logits_go_to_the_model_s_own_loss_with_every_option(length: int, width: int) -> None:
    logits, labels = given()
    calls: list[Any] = []
    loss = _causal_loss(
        lambda *args, **kwargs: calls.append((args, kwargs)) or "its own", nn.Module(), 0, length, VOCABULARY, None
    )  # type: ignore[arg-type]  # no rank is asked
    assert loss(logits[..., :width], labels, VOCABULARY, 7, 2, shift_labels=labels, weight=3) == "its own"
    ((args, kwargs),) = calls
    assert args[1:] == (labels, VOCABULARY, 7, 2)
    assert kwargs == {"shift_labels": labels, "weight": 3}
