"""Stored names to the names of a model: transformers' own renamings and conversions, run on sources."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from tpinit.runtime.errors import LoadError
from tpinit.runtime.loading.lazy_tensors import LazyTensor

__all__ = ["KeyMapping", "map_keys"]


@dataclass(slots=True)
class KeyMapping:
    """The source of each tensor of a model, by its name there; and the stored names that nothing asks for."""

    found: dict[str, LazyTensor] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


def map_keys(model: nn.Module, stored: Mapping[str, LazyTensor]) -> KeyMapping:
    """Return where each tensor of `model` (on the meta device) lies among the stored ones.

    Experts that are stored one by one are fused, fused ones split, prefixes added or taken away, as
    transformers' `from_pretrained` does. Raises LoadError, naming the tensor, for a conversion that can't be
    done without the whole of it in ways that are not known here.
    """
    asked = set(model.state_dict())
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
        return _plain(model, stored, asked)
    if not isinstance(model, PreTrainedModel):
        return _plain(model, stored, asked)
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    named = KeyMapping()
    pending: dict[str, Any] = {}
    table: dict[str, Any] = dict.fromkeys(asked, True)
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, table)
        if name not in asked and key in asked:
            name, pattern = rename_source_key(key, [], [], model.base_model_prefix, table)
        if name not in asked:
            named.unused.append(key)
        elif pattern is None:
            if name in named.found:
                raise LoadError(f"{name} is stored twice, once as {key}: it is not known which one is meant")
            named.found[name] = stored[key]
        else:
            converter = pending.setdefault(name, copy.deepcopy(by_pattern[pattern]))
            converter.add_tensor(name, key, pattern, stored[key])
    for name, converter in pending.items():
        named.found.update(_converted(model, name, converter))
    return named


def _converted(model: Any, name: str, converter: Any) -> dict[str, LazyTensor]:
    steps = ", ".join(type(one).__name__ for one in converter.operations)
    try:
        made = converter.convert(name, model=model, config=model.config)
    except Exception as error:  # whatever a conversion does to a tensor that a source can't do
        raise LoadError(
            f"{name} is stored in another form, and the conversion ({steps}) can't be done piece by piece: "
            f"{type(error).__name__}: {error}; save the model again with this release of transformers"
        ) from error
    found = {key: one[0] if isinstance(one, list) else one for key, one in made.items()}
    strange = [key for key, one in found.items() if not isinstance(one, LazyTensor)]
    if strange:
        raise LoadError(f"{', '.join(strange)}: the conversion ({steps}) needs the numbers; save the model again")
    return found


def _plain(model: nn.Module, stored: Mapping[str, LazyTensor], asked: set[str]) -> KeyMapping:
    """Name by name, with the base model's prefix added or taken away where that is what is missing."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    named = KeyMapping()
    for key, source in stored.items():
        ways = (key, f"{prefix}{key}", re.sub(f"^{re.escape(prefix)}", "", key))
        name = next((way for way in ways if way in asked), None)
        if name is None:
            named.unused.append(key)
        else:
            named.found[name] = source
    return named
