"""Private names of transformers, each behind a function that says what it is for. Transformers is imported on use.

`PRIVATE_NAMES` lists them. A release of transformers that renames one breaks the test of that name, and this module
alone.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, MutableMapping
from functools import lru_cache
from typing import Any

from torch import nn

__all__ = [
    "CAPTURES",
    "PRIVATE_NAMES",
    "attention_names",
    "cache_layer_class",
    "calls_loss_function",
    "causal_lm_class",
    "init_namespace",
    "captures_outputs",
    "is_causal_loss",
    "is_conv1d",
    "is_model",
    "is_own_forward",
    "loading_rules",
    "pretrained_model",
    "set_loss_function",
    "set_initialized",
    "tp_plans",
    "unexpected_keys_to_ignore",
    "missing_keys_to_ignore",
]

PRIVATE_NAMES: dict[str, str] = {
    "PreTrainedModel._tp_plan": "the tensor-parallel plan of a model instance",
    "PretrainedConfig.base_model_tp_plan": "the plan of the base model, in its config",
    "PreTrainedModel.base_model_prefix": "the attribute that holds the base model",
    "PreTrainedModel._keys_to_ignore_on_load_missing": "keys that a checkpoint may lack",
    "PreTrainedModel._keys_to_ignore_on_load_unexpected": "keys of a checkpoint that no model needs",
    "_is_hf_initialized": "the mark of a module or parameter that init_weights leaves as it is",
    "conversion_mapping.get_model_conversion_mapping": "how stored tensors become a model's",
    "core_model_loading.rename_source_key": "the same",
    "core_model_loading.WeightConverter": "the same",
    "core_model_loading.WeightRenaming": "the same",
    "core_model_loading.dot_natural_key": "the same",
    "initialization.TORCH_INIT_FUNCTIONS": "where transformers keeps torch's initialisers",
    "models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING": "the causal language model of a config",
    "_output_capturing_hooks_installed": "the mark of a model that has these hooks",
    "utils.output_capturing": "the module that defines the hooks which record outputs: they change nothing",
    "CacheLayerMixin._layer_type": "the kind for which a new class of cache layers registers itself",
    "pytorch_utils.Conv1D": "a linear whose weight is [in, out]",
    "loss.loss_utils.ForCausalLMLoss": "the loss that is computed from local logits, told by identity",
    "loss.loss_utils.fixed_cross_entropy": "what that loss calls; libraries of fused losses patch it",
    "PretrainedConfig._attn_implementation": "which attention function a model calls",
    "PreTrainedModel._loss_function": "where a model keeps a loss function that was set",
    "self.loss_function( in the source of a forward": "whether a model hands its logits to its loss_function",
}
"""Every private name, and private behaviour, of transformers that the runtime leans on; and what for."""


def is_conv1d(module: nn.Module) -> bool:
    """Tell whether a module is GPT-2's Conv1D, a linear whose weight is [in, out]."""
    utilities: Any = sys.modules.get("transformers.pytorch_utils")
    return utilities is not None and isinstance(module, utilities.Conv1D)


def cache_layer_class(original: Any, namespace: dict[str, Any]) -> type:
    """Return a subclass of a class of cache layers, of the same name, that transformers uses for no kind of layer."""
    own = {"__module__": original.__module__, "__qualname__": original.__qualname__, "_layer_type": None}
    return type(original.__name__, (original,), {**own, **namespace})


_ABSENT = object()


CAPTURES = "_output_capturing_hooks_installed"
"""The attribute that says that a model has the hooks of `captures_outputs`."""


def captures_outputs(hook: Any) -> bool:
    """Return whether a hook is transformers' own, which records hidden states and attentions for the model's output."""
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"


def tp_plans(model: nn.Module) -> tuple[dict[str, str], dict[str, str], str]:
    """Return a model's tp_plan, its base model's, and the prefix of the base model's names ("" or "model.")."""
    base = getattr(model, "base_model_prefix", "")
    inner = getattr(model, base, None) if base else None
    prefix = f"{base}." if isinstance(inner, nn.Module) and inner is not model else ""
    of_base = getattr(getattr(model, "config", None), "base_model_tp_plan", None) or {}
    return dict(getattr(model, "_tp_plan", None) or {}), dict(of_base), prefix


def missing_keys_to_ignore(model: nn.Module) -> Iterable[str]:
    """Return patterns of names that a checkpoint of this model may lack."""
    return getattr(model, "_keys_to_ignore_on_load_missing", None) or ()


def unexpected_keys_to_ignore(model: nn.Module) -> Iterable[str]:
    """Return patterns of names in a checkpoint for which this model has no place, and needs none."""
    return getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()


def pretrained_model() -> Any:
    """Return the class PreTrainedModel if transformers' models are imported, else None."""
    return getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)


def is_model(module: nn.Module) -> bool:
    """Return whether a module is a model of transformers: a whole one, or the encoder or decoder of one."""
    known = pretrained_model()
    return known is not None and isinstance(module, known)


def set_initialized(target: nn.Module | nn.Parameter, initialized: bool) -> None:
    """Mark a module or parameter, or remove the mark: `init_weights` leaves what is marked as it is."""
    if initialized:
        target._is_hf_initialized = True  # type: ignore[union-attr]  # a mark that transformers sets itself
    else:
        target.__dict__.pop("_is_hf_initialized", None)


def init_namespace() -> MutableMapping[str, Any] | None:
    """Return where transformers keeps torch's initialisers, to replace them for a time; None if it is not imported."""
    found: MutableMapping[str, Any] | None = getattr(
        sys.modules.get("transformers.initialization"), "TORCH_INIT_FUNCTIONS", None
    )
    return found


def loading_rules(model: nn.Module) -> Any:
    """Return how stored keys map to a model's names: (mapping, converter class, renaming class, rename, sort key).

    None for a model that is not transformers' own, or a release without conversions.
    """
    try:
        from transformers import PreTrainedModel
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )
    except ImportError:  # transformers 4 has no conversions
        return None
    if not isinstance(model, PreTrainedModel):
        return None
    return get_model_conversion_mapping(model), WeightConverter, WeightRenaming, rename_source_key, dot_natural_key


def causal_lm_class(config: Any) -> type[nn.Module] | None:
    """Return the causal language model of a transformers config; None if it has none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return found  # type: ignore[no-any-return]  # a lazy mapping, untyped


def is_causal_loss(function: Any) -> bool:
    """Return whether a function is transformers' own loss of causal language models, and none of it is patched."""
    losses: Any = sys.modules.get("transformers.loss.loss_utils")
    if losses is None or function is not getattr(losses, "ForCausalLMLoss", None):
        return False
    parts = {"ForCausalLMLoss": function, "fixed_cross_entropy": getattr(losses, "fixed_cross_entropy", None)}
    return all(_is_defined_in(part, losses.__file__, name) for name, part in parts.items())


def set_loss_function(model: nn.Module, function: Any) -> Callable[[], None]:
    """Set the loss function of a model, and return a function that restores what it was."""
    before = model.__dict__.get("_loss_function", _ABSENT)
    model.__dict__["_loss_function"] = function

    def restore() -> None:
        if before is _ABSENT:
            model.__dict__.pop("_loss_function", None)
        else:
            model.__dict__["_loss_function"] = before

    return restore


def is_own_forward(forward: Any) -> bool:
    """Return whether a forward, without its decorators, is transformers' own code of a model."""
    code = getattr(inspect.unwrap(forward), "__code__", None)
    package = getattr(sys.modules.get("transformers"), "__file__", None)
    return code is not None and package is not None and code.co_filename.startswith(os.path.dirname(package))


def _is_defined_in(function: Any, path: str, name: str) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename == path and code.co_name == name


@lru_cache(maxsize=256)
def calls_loss_function(forward: Callable[..., Any]) -> bool:
    """Tell whether a model's forward hands its logits to its `loss_function`, read from the forward's source."""
    try:
        text = inspect.getsource(inspect.unwrap(forward))
    except (OSError, TypeError):
        return False
    return "self.loss_function(" in text


def attention_names(configs: Iterable[Any]) -> set[str]:
    """Return the names of the attention functions that configs have chosen."""
    chosen = {getattr(config, "_attn_implementation", None) for config in configs}
    return {name for name in chosen if isinstance(name, str)}
