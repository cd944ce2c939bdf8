"""Activation checkpointing where a layer begins with column-parallel linears (BERT), or all share an input (T5)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tpinit.runtime import initialize
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

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


def _t5() -> Any:
    torch.manual_seed(0)
    config = T5Config(
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        vocab_size=VOCABULARY,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    return T5ForConditionalGeneration(config).train()


def checkpointed_layers(rank: int, family: str, reentrant: bool, sequence_parallel: bool = False) -> dict[str, Any]:
    """Train 3 steps beside the unsharded model; return the largest difference of losses and logits."""
    model = {"bert": _bert, "t5": _t5}[family]()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    unsharded = copy.deepcopy(model)
    reference = torch.optim.SGD(unsharded.parameters(), lr=0.1)
    engine, *_ = initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        config={"tensor_parallel": {"autotp_size": 2}, "gradient_clipping": 0},
        sequence_parallel=sequence_parallel,
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
    engine.eval()  # gives the logits beside labels
    unsharded.eval()
    with torch.no_grad():
        far.append(
            float((unsharded(input_ids=ids, labels=ids).logits - engine(input_ids=ids, labels=ids).logits).abs().max())
        )
    return {"far": max(far), "in_step": in_step(rank)}
