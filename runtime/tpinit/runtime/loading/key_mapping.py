"""The stored tensor of each parameter and buffer: transformers' renamings and conversions, run on lazy tensors."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from tpinit.runtime.errors import LoadError
from tpinit.runtime.internals.transformers_private import loading_rules
from tpinit.runtime.loading.lazy_tensors import LazyTensor

__all__ = ["KeyMapping", "map_keys"]


@dataclass(slots=True)
class KeyMapping:
    """The lazy tensor of each name in a model's state dict, and the stored names that the model does not use."""

    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


def map_keys(model: nn.Module, stored: Mapping[str, LazyTensor]) -> KeyMapping:
    """Map the stored tensors to the names of `model`, which is on the meta device.

    Like transformers' `from_pretrained`, fuses experts that are stored one by one, splits fused tensors and adds or
    removes prefixes. Raises LoadError, with the tensor's name, for a conversion that can't be done slice by slice.
    """
    expected = set(model.state_dict())
    rules = loading_rules(model)
    if rules is None:
        return _map_by_prefix(model, stored, expected)
    transforms, converter_class, renaming_class, rename_key, natural_order = rules
    renamings = [transform for transform in transforms if isinstance(transform, renaming_class)]
    converters = [transform for transform in transforms if isinstance(transform, converter_class)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    mapping = KeyMapping()
    pending: dict[str, Any] = {}
    prefix = model.base_model_prefix
    expected_table: dict[str, Any] = dict.fromkeys(expected, True)
    for key in sorted(stored, key=natural_order):
        name, pattern = rename_key(key, renamings, converters, prefix, expected_table)
        if name not in expected and key in expected:
            name, pattern = rename_key(key, [], [], prefix, expected_table)
        if name not in expected:
            mapping.unused.append(key)
        elif pattern is None:
            if name in mapping.tensors:
                raise LoadError(
                    f"{name} is stored twice, the second time as {key}: remove one of the two from the checkpoint"
                )
            mapping.tensors[name] = stored[key]
        else:
            converter = pending.setdefault(name, copy.deepcopy(by_pattern[pattern]))
            converter.add_tensor(name, key, pattern, stored[key])
    for name, converter in pending.items():
        mapping.tensors.update(_convert(model, name, converter))
    return mapping


def _convert(model: Any, name: str, converter: Any) -> dict[str, LazyTensor]:
    """Return the lazy tensors that one of transformers' converters makes, by their names in the model."""
    steps = ", ".join(type(operation).__name__ for operation in converter.operations)
    try:
        made = converter.convert(name, model=model, config=model.config)
    except Exception as error:  # whatever the conversion does to a tensor that a lazy tensor does not support
        raise LoadError(
            f"{name} is stored in another form, and the conversion ({steps}) can't be done piece by piece: "
            f"{type(error).__name__}: {error}; save the model again with this release of transformers"
        ) from error
    converted = {key: value[0] if isinstance(value, list) else value for key, value in made.items()}
    not_lazy = [key for key, value in converted.items() if not isinstance(value, LazyTensor)]
    if not_lazy:
        raise LoadError(f"{', '.join(not_lazy)}: the conversion ({steps}) needs the values; save the model again")
    return converted


def _map_by_prefix(model: nn.Module, stored: Mapping[str, LazyTensor], expected: set[str]) -> KeyMapping:
    """Map each stored name to the same name, or to the name with the base model's prefix added or removed."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    mapping = KeyMapping()
    for key, tensor in stored.items():
        candidates = (key, f"{prefix}{key}", re.sub(f"^{re.escape(prefix)}", "", key))
        name = next((candidate for candidate in candidates if candidate in expected), None)
        if name is None:
            mapping.unused.append(key)
        else:
            mapping.tensors[name] = tensor
    return mapping
