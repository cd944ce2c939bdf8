"""Activation checkpointing of both kinds, where a checkpointed layer begins with column-parallel linears (BERT)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tpinit.runtime import initialize
from transformers import BertConfig, BertForMaskedLM

from support.refusals import in_step
from support.tiny_models import VOCABULARY, tokens


def _bert() -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=VOCABULARY,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForMaskedLM(config).train()


def post_norm_layers(rank: int, reentrant: bool) -> dict[str, Any]:
    """Train 3 steps beside the unsharded model; return the largest difference of losses and logits."""
    model = _bert()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    unsharded = copy.deepcopy(model)
    reference = torch.optim.SGD(unsharded.parameters(), lr=0.1)
    engine, *_ = initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        config={"tensor_parallel": {"autotp_size": 2}, "gradient_clipping": 0},
    )
    far = []
    for step in range(3):
        ids = tokens(step)
        expected = unsharded(input_ids=ids, labels=ids).loss
        expected.backward()
        reference.step()
        reference.zero_grad()
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        far.append(abs(float(loss.detach()) - float(expected.detach())))
    ids = tokens()
    with torch.no_grad():
        far.append(float((unsharded(input_ids=ids).logits - engine(input_ids=ids).logits).abs().max()))
    return {"far": max(far), "in_step": in_step(rank)}
