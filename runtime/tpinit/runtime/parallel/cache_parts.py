"""The cache of keys and values that a sharded model returns: each rank's is that of its own heads.

The tensors of its layers can be read by a forward and by the cache's own methods only: to pass the cache back, to crop,
reorder, repeat or copy it is right on every rank. Whatever else reads them would take one rank's heads for all.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, wraps
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from tpinit.runtime.errors import EngineError
from tpinit.runtime.internals.torch_private import set_class
from tpinit.runtime.internals.transformers_private import cache_layer_class
from tpinit.runtime.parallel.forward_scope import ForwardScope, running_scope
from tpinit.runtime.parallel.outputs import numbers_of_heads

__all__ = ["guard_caches"]

_OWN = "tp_own_methods"  # the attribute of a layer that counts its own methods that run
_HEADS = 1  # the dimension of [batch, heads, tokens, features]
_KEYS = ("keys", "values")


def guard_caches(scope: ForwardScope, group: ProcessGroup) -> None:
    """Guard the caches that forwards of a model take and return, on a rank that holds some of the heads."""
    size = torch.distributed.get_world_size(group)
    given: list[Any] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given[:] = [value for value in (*args, *kwargs.values()) if _is_cache(value)]

    def leave(model: nn.Module, output: Any) -> Any:
        values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
        found = [*given, *(value for value in values if _is_cache(value))]
        given.clear()
        if found:
            heads = numbers_of_heads(getattr(model, "config", None), with_shared=True)
            for layer in (layer for one in found for layer in _layers(one)):
                _guard(layer, heads, size)
        return output

    scope.add(enter, leave)


def _is_cache(value: Any) -> bool:
    caches: Any = sys.modules.get("transformers.cache_utils")
    return caches is not None and isinstance(value, caches.Cache)


def _layers(cache_: Any) -> Iterator[Any]:
    """Yield the layers of a cache, and of the two caches of an encoder-decoder's."""
    for name in ("self_attention_cache", "cross_attention_cache"):
        if hasattr(cache_, name):
            yield from _layers(getattr(cache_, name))
    yield from getattr(cache_, "layers", None) or ()


def _guard(layer: Any, heads: set[int], size: int) -> None:
    """Guard the tensors of one layer, unless its keys are those of all heads."""
    held = layer.__dict__
    keys = held.get("keys")
    if isinstance(keys, torch.Tensor) and keys.dim() == 4:
        count = keys.shape[_HEADS]
        if count in heads and count * size not in heads:
            return
    names = {name for name, value in held.items() if _holds_tensor(value)}
    original: Any = getattr(type(layer), "tp_original", type(layer))
    names |= set(getattr(type(layer), "tp_names", ()))
    if names:
        set_class(layer, _guarded_class(original, frozenset({*names, *_KEYS}.intersection(held))))


def _holds_tensor(value: Any) -> bool:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)
    return any(isinstance(one, torch.Tensor) and one.dim() > 1 for one in values)


def _error(name: str) -> EngineError:
    return EngineError(
        f"past_key_values: the {name} of a cache are those of this rank's heads, and only a forward of the sharded "
        "model can use them: pass the cache back as past_key_values, or call its own methods (get_seq_length, crop, "
        "reorder_cache, batch_repeat_interleave, copy.deepcopy), which are right on every rank"
    )


def _guarded_attribute(name: str) -> property:
    def read(layer: Any) -> Any:
        if not torch.compiler.is_compiling() and running_scope() is None and not layer.__dict__.get(_OWN):
            raise _error(name)
        return layer.__dict__[name]

    def write(layer: Any, value: Any) -> None:
        layer.__dict__[name] = value

    return property(read, write)


def _own(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of the original class read the tensors."""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.__dict__[_OWN] = self.__dict__.get(_OWN, 0) + 1
        try:
            return method(self, *args, **kwargs)
        finally:
            self.__dict__[_OWN] -= 1

    return call


@cache
def _guarded_class(original: Any, names: frozenset[str]) -> type:
    """Return the subclass of a class of cache layers that guards the attributes `names`.

    Its own methods may read them, but for those with which a forward adds keys: an unsharded model's would too.
    """
    methods = {
        name: getattr(original, name)
        for name in dir(original)
        if not name.startswith(("__", "update")) and isinstance(getattr(original, name), FunctionType)
    }
    namespace: dict[str, Any] = {
        "tp_original": original,
        "tp_names": names,
        **{name: _own(method) for name, method in methods.items()},
        **{name: _guarded_attribute(name) for name in names},
        "__deepcopy__": _copy,
        "__reduce_ex__": _refuse_pickle,
    }
    return cache_layer_class(original, namespace)


def _copy(self: Any, memo: dict[int, Any]) -> Any:
    twin = object.__new__(type(self))
    memo[id(self)] = twin
    twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
    return twin


def _refuse_pickle(_: Any, __: Any) -> Any:
    raise _error("pickled tensors")
