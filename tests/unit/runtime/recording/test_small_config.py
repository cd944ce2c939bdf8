"""Small configs: the same heads, kinds of layers and remainders; one that is sharded otherwise is found."""

import copy
import re

import pytest
from tpinit.runtime import RecordError
from tpinit.runtime.recording.small_config import SmallConfig, build_small, check_plans, small_batch, small_config
from transformers import AutoConfig

LLAMA = {"num_attention_heads": 64, "num_key_value_heads": 8, "hidden_size": 8192, "vocab_size": 32003}


def test_widths_are_small_and_keep_their_remainders():
    given = AutoConfig.for_model("llama", **LLAMA, intermediate_size=28673)
    before = given.to_dict()
    both = small_config(given, 4)
    assert given.to_dict() == before
    small = both.small
    assert (small.num_attention_heads, small.num_key_value_heads, small.head_dim) == (64, 8, 8)
    assert small.hidden_size == 512
    assert small.intermediate_size % 4 == 28673 % 4
    assert small.vocab_size % 4 == 32003 % 4
    assert max(small.intermediate_size, small.vocab_size) < 600
    assert both.wide.hidden_size == 8192
    assert both.wide.num_hidden_layers == small.num_hidden_layers == 2


def test_many_heads_are_divided_by_what_keeps_how_they_are_shared():
    small = small_config(AutoConfig.for_model("llama", num_attention_heads=128, num_key_value_heads=16), 4).small
    assert (small.num_attention_heads, small.num_key_value_heads) == (64, 8)
    small = small_config(AutoConfig.for_model("falcon"), 2).small
    assert small.num_attention_heads == 71  # a prime: one head could not be sharded


def test_there_is_a_layer_of_each_kind():
    config = AutoConfig.for_model("gemma3_text")
    assert small_config(config, 2, 1).small.layer_types == ["sliding_attention", "full_attention"]
    assert small_config(config, 2, 3).wide.layer_types.count("sliding_attention") == 2


def test_dropout_is_off_and_said_to_be():
    both = small_config(AutoConfig.for_model("gpt2"), 2)
    assert both.small.resid_pdrop == both.wide.attn_pdrop == 0.0
    assert any("resid_pdrop" in one for one in both.notes)
    assert not any("dropout" in one for one in small_config(AutoConfig.for_model("llama"), 2).notes)


def test_a_small_model_that_is_sharded_otherwise_is_found():
    both = small_config(AutoConfig.for_model("llama", num_attention_heads=4, num_key_value_heads=4), 2, 1)
    check_plans(both, 2, {}, False)
    other = copy.deepcopy(both.small)
    other.num_attention_heads = other.num_key_value_heads = 1
    other.head_dim = 32
    with pytest.raises(RecordError, match=re.escape("model.layers.0.self_attn.q_proj.weight is column")):
        check_plans(SmallConfig(both.wide, other), 2, {}, False)
    other = copy.deepcopy(both.small)
    other.tie_word_embeddings = True
    with pytest.raises(RecordError, match="tied to"):
        check_plans(SmallConfig(both.wide, other), 2, {}, False)


def test_a_small_model_runs_on_its_batch():
    model = build_small(small_config(AutoConfig.for_model("opt"), 2, 1).small, "sdpa")
    batch = small_batch(model, 6)
    assert batch["input_ids"].shape == (2, 6)
    assert model.config._attn_implementation == "sdpa"
    assert model(**batch).loss.isfinite()


def test_what_has_no_small_model_or_no_loss_is_refused():
    config = small_config(AutoConfig.for_model("llama"), 2, 1).small
    config.num_key_value_heads = 0
    with pytest.raises(RecordError, match="no small LlamaForCausalLM can be built"):
        build_small(config)
    config = AutoConfig.for_model("llama", architectures=["LlamaModel"])
    with pytest.raises(RecordError, match="a LlamaModel a loss"):
        small_batch(build_small(small_config(config, 2, 1).small))
