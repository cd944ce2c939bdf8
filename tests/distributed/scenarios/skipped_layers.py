"""A model that skips layers at random (BART with layer drop), with its tokens sharded between the layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tpinit.runtime import initialize
from transformers import BartConfig, BartForConditionalGeneration

from support.refusals import in_step, refusal_of
from support.tiny_models import VOCABULARY, tokens


def layer_drop(rank: int) -> dict[str, Any]:
    """Run forwards that skip other layers each; return the refusals and the largest difference."""
    torch.manual_seed(0)
    config = BartConfig(
        d_model=32,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        encoder_layerdrop=0.3,
        decoder_layerdrop=0.3,
        dropout=0.0,
    )
    model: Any = BartForConditionalGeneration(config).train()
    unsharded = copy.deepcopy(model)
    engine, *_ = initialize(
        model=model, config={"tensor_parallel": {"autotp_size": 2}, "gradient_clipping": 0}, sequence_parallel=True
    )
    far, refused = [], []
    for seed in range(16):
        ids = tokens(seed)
        losses: list[float] = []

        def run(model: Any, ids: torch.Tensor = ids, seed: int = seed, losses: list[float] = losses) -> None:
            torch.manual_seed(seed)
            losses.append(float(model(input_ids=ids, decoder_input_ids=ids).logits.logsumexp(-1).mean().detach()))

        run(unsharded)
        refused.append(refusal_of(lambda run=run: run(engine)))  # type: ignore[misc]  # mypy can't type its default
        far.append(abs(losses[0] - losses[-1]) if not refused[-1] else 0.0)
    return {"far": max(far), "refused": refused, "in_step": in_step(rank)}
