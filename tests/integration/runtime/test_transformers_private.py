"""Every private name of transformers that the runtime leans on exists and behaves as expected, by its name."""

import importlib
import inspect

import pytest
import torch
import transformers
from torch import nn
from tpinit.runtime.internals import transformers_private


def llama(**settings):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=32, num_hidden_layers=1, **sizes, **settings)
    )


def own_plan():
    own, of_base, prefix = transformers_private.tp_plans(llama())
    assert own["lm_head"].startswith("colwise")
    return of_base, prefix


def plan_of_base():
    of_base, _ = own_plan()
    assert of_base["layers.*.self_attn.o_proj"] == "rowwise"


def base_prefix():
    assert own_plan()[1] == "model."
    assert transformers_private.tp_plans(llama().model)[2] == ""
    assert transformers_private.tp_plans(nn.Linear(1, 1)) == ({}, {}, "")


def ignored_keys(function, name):
    assert hasattr(transformers.PreTrainedModel, name)
    model = llama()
    setattr(model, name, ["some.key"])
    assert list(function(model)) == ["some.key"]
    assert list(function(nn.Linear(1, 1))) == []


def initialised_mark():
    assert transformers_private.pretrained_model() is transformers.PreTrainedModel
    model = llama()
    weight, marked = model.lm_head.weight, model.model.embed_tokens.weight
    transformers_private.set_initialized(marked, True)
    for module in model.modules():
        transformers_private.set_initialized(module, module is model.model.norm)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.init_weights()
    assert (marked == 7).all()
    assert (model.model.norm.weight == 7).all()
    assert not (weight == 7).any()
    transformers_private.set_initialized(marked, False)
    assert not vars(marked)


def rules():
    found = transformers_private.loading_rules(llama())
    assert found is not None
    assert transformers_private.loading_rules(nn.Linear(1, 1)) is None
    return found


def mapping():
    assert isinstance(rules()[0], list)


def renamed_key():
    _, _, _, rename, _ = rules()
    table = {"model.norm.weight": True}
    assert rename("norm.weight", [], [], "model", table)[0] == "model.norm.weight"


def converter():
    kind = rules()[1]
    assert {"add_tensor", "convert"} <= set(dir(kind))


def renaming():
    assert inspect.isclass(rules()[2])


def natural_key():
    assert sorted(["a.10", "a.9"], key=rules()[4]) == ["a.9", "a.10"]


def init_functions():
    found = transformers_private.init_namespace()
    assert found is not None
    assert found["normal_"] is torch.nn.init.normal_


def causal_mapping():
    assert transformers_private.causal_lm_class(transformers.LlamaConfig()) is transformers.LlamaForCausalLM
    assert transformers_private.causal_lm_class(transformers.ViTConfig()) is None


def conv1d():
    module = importlib.import_module("transformers.pytorch_utils").Conv1D(3, 2)
    assert transformers_private.is_conv1d(module)
    assert tuple(module.weight.shape) == (2, 3)
    assert not transformers_private.is_conv1d(nn.Linear(2, 3))


def causal_loss():
    model = llama()
    assert transformers_private.is_causal_loss(model.loss_function)
    assert not transformers_private.is_causal_loss(lambda *_: None)
    names = inspect.signature(model.loss_function).parameters
    assert names.keys() >= {"logits", "labels", "vocab_size", "num_items_in_batch", "ignore_index", "shift_labels"}


def patched_cross_entropy():
    losses = importlib.import_module("transformers.loss.loss_utils")
    original = losses.fixed_cross_entropy
    losses.fixed_cross_entropy = lambda *args: original(*args)
    try:
        assert not transformers_private.is_causal_loss(llama().loss_function)
    finally:
        losses.fixed_cross_entropy = original
    assert transformers_private.is_causal_loss(llama().loss_function)


def set_loss():
    model = llama()
    before = model.loss_function
    restore = transformers_private.set_loss_function(model, print)
    assert model.loss_function is print
    restore()
    assert model.loss_function is before
    model.loss_function = max
    restore = transformers_private.set_loss_function(model, print)
    restore()
    assert model.loss_function is max


def loss_in_source():
    class Own(transformers.LlamaForCausalLM):
        def forward(self, **arguments):
            return super().forward(**arguments)

    assert transformers_private.is_own_forward(llama().forward)
    assert not transformers_private.is_own_forward(Own.forward)
    assert transformers_private.calls_loss_function(transformers.LlamaForCausalLM.forward)
    assert not transformers_private.calls_loss_function(nn.Linear.forward)


def capturing_hooks():
    model = llama()
    model(input_ids=torch.arange(3)[None], output_hidden_states=True)
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    assert getattr(model.model, transformers_private.CAPTURES)
    assert transformers_private.CAPTURES not in vars(llama().model)
    assert hooks
    assert all(transformers_private.captures_outputs(hook) for hook in hooks)
    assert not transformers_private.captures_outputs(lambda *_: None)


def cache_layers():
    from transformers import cache_utils

    known = cache_utils.DYNAMIC_LAYER_TYPE_MAPPING

    class Own(cache_utils.DynamicLayer):
        _layer_type = "tpinit_test"

    try:
        assert known["tpinit_test"] is Own
        derived = transformers_private.cache_layer_class(Own, {"mark": 1})
        assert (derived.mark, derived.__name__, known["tpinit_test"]) == (1, "Own", Own)
    finally:
        del known["tpinit_test"]


def attention_names():
    model = llama()
    assert transformers_private.attention_names([model.config, object()]) == {"sdpa"}
    model.set_attn_implementation("eager")
    assert transformers_private.attention_names([model.config]) == {"eager"}


TRANSFORMERS = {
    "PreTrainedModel._tp_plan": own_plan,
    "PretrainedConfig.base_model_tp_plan": plan_of_base,
    "PreTrainedModel.base_model_prefix": base_prefix,
    "PreTrainedModel._keys_to_ignore_on_load_missing": lambda: ignored_keys(
        transformers_private.missing_keys_to_ignore, "_keys_to_ignore_on_load_missing"
    ),
    "PreTrainedModel._keys_to_ignore_on_load_unexpected": lambda: ignored_keys(
        transformers_private.unexpected_keys_to_ignore, "_keys_to_ignore_on_load_unexpected"
    ),
    "_is_hf_initialized": initialised_mark,
    "conversion_mapping.get_model_conversion_mapping": mapping,
    "core_model_loading.rename_source_key": renamed_key,
    "core_model_loading.WeightConverter": converter,
    "core_model_loading.WeightRenaming": renaming,
    "core_model_loading.dot_natural_key": natural_key,
    "initialization.TORCH_INIT_FUNCTIONS": init_functions,
    "models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING": causal_mapping,
    "_output_capturing_hooks_installed": capturing_hooks,
    "utils.output_capturing": capturing_hooks,
    "CacheLayerMixin._layer_type": cache_layers,
    "pytorch_utils.Conv1D": conv1d,
    "loss.loss_utils.ForCausalLMLoss": causal_loss,
    "loss.loss_utils.fixed_cross_entropy": patched_cross_entropy,
    "PretrainedConfig._attn_implementation": attention_names,
    "PreTrainedModel._loss_function": set_loss,
    "self.loss_function( in the source of a forward": loss_in_source,
}


@pytest.mark.parametrize("name", transformers_private.PRIVATE_NAMES)
def test_a_private_name_of_transformers_does_what_the_runtime_takes_it_to_do(name):
    TRANSFORMERS[name]()


def test_a_missing_name_fails_its_test(monkeypatch):
    monkeypatch.delattr(transformers.PreTrainedModel, "_keys_to_ignore_on_load_missing")
    with pytest.raises(AssertionError):
        TRANSFORMERS["PreTrainedModel._keys_to_ignore_on_load_missing"]()
