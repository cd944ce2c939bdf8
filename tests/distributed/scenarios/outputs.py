"""What a sharded model takes in and gives out, beside the unsharded model: ids, labels, attentions, hidden states."""

from __future__ import annotations

from typing import Any

import torch

from support.pairs import pair
from support.refusals import in_step, refusal_of
from support.tiny_models import tokens


def attentions_and_hidden_states(rank: int) -> dict[str, Any]:
    """Compare the attentions and hidden states of both models; ask for attentions in a tuple."""
    unsharded, engine = pair()
    ids = tokens()
    asked = {"input_ids": ids, "output_attentions": True, "output_hidden_states": True}
    expected, actual = unsharded(**asked), engine(**asked)
    far = [
        float((one - other).abs().max().detach())
        for name in ("attentions", "hidden_states")
        for one, other in zip(actual[name], expected[name], strict=True)
    ]
    penalty = sum(layer.square().sum() for layer in actual.attentions)
    penalty.backward()
    sum(layer.square().sum() for layer in expected.attentions).backward()
    norm = engine.module.model.layers[0].input_layernorm.weight.grad
    return {
        "shapes": [
            tuple(one.shape) == tuple(other.shape)
            for one, other in zip(actual.attentions, expected.attentions, strict=True)
        ],
        "far": max(far),
        "gradient": float((norm - unsharded.model.layers[0].input_layernorm.weight.grad).abs().max()),
        "tuple": refusal_of(lambda: engine(input_ids=ids, output_attentions=True, return_dict=False)),
        "plain": engine(input_ids=ids).attentions is None,
        "in_step": in_step(rank),
    }


def ids_and_labels_outside(rank: int) -> dict[str, Any]:
    """Give ids and labels outside of the vocabulary, and legal ones at its ends."""
    unsharded, engine = pair()
    vocabulary = unsharded.config.vocab_size
    legal = tokens()
    legal[0, 0], legal[0, 1] = 0, vocabulary - 1
    labels = legal.clone()
    labels[0, 2] = -100

    def run(ids: torch.Tensor, targets: torch.Tensor) -> Any:
        return engine(input_ids=ids, labels=targets).loss

    def changed(tensor: torch.Tensor, value: int) -> torch.Tensor:
        other = tensor.clone()
        other[1, 3] = value
        return other

    loss, expected = run(legal, labels), unsharded(input_ids=legal, labels=labels).loss
    return {
        "far": float((loss - expected).abs().detach()),
        "ids": {value: refusal_of(lambda v=value: run(changed(legal, v), labels)) for value in (vocabulary, -1)},
        "labels": {value: refusal_of(lambda v=value: run(legal, changed(labels, v))) for value in (vocabulary, -1)},
        "in_step": in_step(rank),
    }
