"""A model for a checkpoint is built on the meta device, with the buffers that its class computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from tpinit.runtime.loading.meta_device import build_on_meta_device
from tpinit.runtime.loading.open_model import build_without_weights
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from families import catalogue

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 32}


class Table(PreTrainedModel):
    """Computes its buffer in its constructor alone, and not where transformers initialises a model again."""

    config_class = LlamaConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.linear = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(6.0) ** 2, persistent=False)
        self.post_init()


class Loose(Table):
    """Keeps a tensor that is neither a parameter nor a buffer."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.scale = torch.ones(3)


class Reading(Table):
    """Reads the value of a tensor while it is built."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.last = torch.linspace(0, 1, 3)[-1].item()


class Plain(nn.Module):
    """No model of transformers, with a large parameter that is not begun by torch.empty."""

    def __init__(self, _: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(300, 300))
        self.register_buffer("table", torch.arange(6.0) ** 2, persistent=False)


def config() -> LlamaConfig:
    return LlamaConfig(num_hidden_layers=1, num_key_value_heads=2, **SIZES)


def buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_buffers())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen2_moe", "whisper", "t5", "vit", "bert", "llama_tied"])
def test_buffers_are_those_of_the_real_model(name: str) -> None:
    real = catalogue.build(name)
    model = build_on_meta_device(lambda: type(real)(real.config))
    assert model is not None
    assert all(parameter.is_meta for parameter in model.parameters())
    assert buffers(model).keys() == buffers(real).keys()
    for key, buffer in buffers(model).items():
        assert torch.equal(buffer, buffers(real)[key]), key
    assert [key for key, _ in model.named_parameters()] == [key for key, _ in real.named_parameters()]
    assert not any(hasattr(parameter, "_is_hf_initialized") for parameter in model.parameters())


def test_the_random_state_of_the_caller_is_kept() -> None:
    before = torch.get_rng_state()
    build_on_meta_device(lambda: LlamaForCausalLM(config()))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", [Table, Loose, Reading])
def test_a_class_that_transformers_would_load_with_wrong_values_is_built_another_way(kind: Any) -> None:
    assert build_on_meta_device(lambda: kind(config())) is None
    found = build_without_weights(config(), kind)
    found.fill_buffers()
    real = kind(config())
    assert torch.equal(buffers(found.model)["table"], real.table)
    assert found.model.linear.weight.is_meta
    assert getattr(found.model, "last", None) == getattr(real, "last", None)
    assert torch.equal(getattr(found.model, "scale", torch.ones(1)), getattr(real, "scale", torch.ones(1)))


def test_a_large_parameter_of_a_plain_module_goes_to_the_meta_device() -> None:
    found = build_without_weights(config(), Plain)
    found.fill_buffers()
    assert found.model.weight.is_meta
    assert found.model.weight.requires_grad
    assert torch.equal(found.model.table, torch.arange(6.0) ** 2)
    assert not nn.Linear(300, 300).weight.is_meta  # nothing is left behind
