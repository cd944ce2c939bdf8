"""Fewer key/value heads than ranks, with padding: transformers' sdpa then reads how many queries share a head."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tpinit.runtime import initialize

from support.tiny_models import build


def masked_losses(_: int, heads: int, kv_heads: int) -> list[Any]:
    """Return each loss of a sharded model and of the whole one, without padding and with it, and the plan's patch."""
    options = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": 8 * heads}
    model = build(attn_implementation="sdpa", **options)
    whole = copy.deepcopy(model)
    config = {"optimizer": {"type": "SGD", "params": {"lr": 0.1}}, "tensor_parallel": {"autotp_size": 4}}
    engine, *_ = initialize(model=model, config=config)
    ids = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    padded = torch.ones_like(ids)
    padded[1, 8:] = 0
    losses = [
        tuple(float(one(input_ids=ids, attention_mask=mask, labels=ids).loss) for one in (engine, whole))
        for mask in (None, padded)
    ]
    found = [losses, engine.plan.blocks[0].attributes]
    engine.destroy()
    return found
