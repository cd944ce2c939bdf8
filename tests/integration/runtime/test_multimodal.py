"""Vision-language models are planned on a batch that they take; what their own code raises is a refusal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn
from tpinit.reference import Resolver
from tpinit.reference.config import read_config
from tpinit.runtime.errors import PlanError
from tpinit.runtime.forecast.preview import forecast

TEXT: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
}  # fmt: skip


def llava() -> Any:
    text = {"model_type": "llama", **TEXT}
    vision = {"model_type": "clip_vision_model", **VISION, "patch_size": 4, "projection_dim": 32}
    return transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=127)


def gemma3() -> Any:
    vision = {"model_type": "siglip_vision_model", **VISION, "patch_size": 4, "vision_use_head": False}
    return transformers.Gemma3Config(
        text_config={"model_type": "gemma3_text", **TEXT, "head_dim": 16},
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=127,
        boi_token_index=125,
        eoi_token_index=126,
    )


def idefics3() -> Any:
    return transformers.Idefics3Config(
        image_token_id=127,
        scale_factor=2,
        pad_token_id=0,
        text_config={"model_type": "llama", **TEXT, "pad_token_id": 0},
        vision_config={**VISION, "patch_size": 4},
    )


CONFIGS = {"LlavaForConditionalGeneration": llava, "Gemma3ForConditionalGeneration": gemma3,
           "Idefics3ForConditionalGeneration": idefics3}  # fmt: skip


def preview(config: Any) -> dict[str, Any]:
    reading = read_config({"tensor_parallel": {"autotp_size": 2}})
    return forecast(config, Resolver(2).resolve(call=None, config=reading), reading)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_vision_language_model_has_a_plan(name: str) -> None:
    config = CONFIGS[name]()
    config.architectures = [name]
    page = preview(config)
    cut = [row["name"] for row in page["parameters"] if row["cut"] != "replicated"]
    assert any("q_proj" in one for one in cut)
    assert not any("vision" in one for one in cut)  # no example batch has a picture: the tower stays whole
    assert page["collectives"]["per_micro_batch"]["calls"] == 4 * 2 + 3


def test_what_a_models_own_code_raises_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: nn.Module, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        raise AttributeError(f"a bug of a library in {type(self).__name__}")

    monkeypatch.setattr(transformers.LlavaForConditionalGeneration, "forward", broken)
    config = llava()
    config.architectures = ["LlavaForConditionalGeneration"]
    with pytest.raises(PlanError, match="a bug of a library"):
        preview(config)
