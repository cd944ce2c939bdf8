"""The functions that a forward finds in modules of torch and transformers: are they still those of `initialize`?

A forward looks its functions up by their global names each time. One that is replaced after `initialize` was not seen
by planning, and on parts of tensors may be wrong without a sign: `functional.silu`, an attention function of
transformers, an entry of its registries.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import Any

import torch
from torch import nn
from tpinit.runtime.internals.transformers_private import attention_names
from tpinit.runtime.planning.analysis.known_code import KnownCode, registries

__all__ = ["GlobalCode"]

_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
_PROBLEM = "it was replaced, and a sharded layer may call it with parts of tensors: do it before initialize"
_TEXTS = ("__repr__", "__str__", "__format__")  # they compute no tensor; tools that show tensors replace them
_WATCHED = ("torch", "transformers", "peft")


class GlobalCode:
    """The functions in the modules of torch, transformers and peft that the forward of a model may call.

    A function of these packages in the place of another one of theirs counts as the same.
    """

    def __init__(self, model: nn.Module) -> None:
        known = KnownCode()
        self._configs = list({id(one): one for one in map(_config, model.modules()) if one is not None}.values())
        self._attention = attention_names(self._configs)
        self._modules = [_Names("torch.Tensor", vars(torch.Tensor), _methods(torch.Tensor))]
        self._registries: dict[int, _Registry] = {}
        for space, names in known.search({type(module) for module in model.modules()}):
            for value in names.values():
                known.is_known(value)  # it finds the modules of these functions
            if space.partition(".")[0] in _WATCHED:
                functions = {name: value for name, value in names.items() if _is_function(space, value)}
                self._modules.append(_Names(space, known.namespaces[space], functions))
                for name, value in names.items():
                    if isinstance(value, Mapping) and not name.startswith("__") and id(value) not in self._registries:
                        registry = _Registry(f"{space}.{name}", value)
                        if any(map(callable, registry.before.values())):
                            self._registries[id(value)] = registry

    def changes(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the problem of every function that was replaced, and is not one of these packages now."""
        replaced = [change for names in self._modules for change in names.replaced()]
        replaced += [change for registry in self._registries.values() for change in registry.replaced()]
        attention = attention_names(self._configs)
        if attention != self._attention:  # another implementation was chosen
            replaced += [
                (f"{registry.name}[{name!r}]", None, registry.now()[name])
                for registry in self._registries.values()
                for name in sorted(attention - self._attention)
                if name in registry.now()
            ]
        if not replaced:
            return
        known = KnownCode()
        for name, before, value in replaced:
            if value is None or not (known.is_known(before) and known.is_known(value)):
                yield name, _PROBLEM


class _Names:
    """The functions in one module or class, when this was made; None for one that a class inherits."""

    def __init__(self, module: str, namespace: Mapping[str, Any], functions: Mapping[str, Any]) -> None:
        self._module, self._namespace = module, namespace
        self._names, self._values = list(functions), list(functions.values())
        self._present = itemgetter(*functions) if len(functions) > 1 and functions.keys() <= namespace.keys() else None

    def replaced(self) -> Iterator[tuple[str, Any, Any]]:
        """Yield the name, the former and the present value of each function that is another one now, or none."""
        try:
            now = list(self._present(self._namespace)) if self._present else [*map(self._namespace.get, self._names)]
        except KeyError:  # one was deleted
            now = [*map(self._namespace.get, self._names)]
        if now != self._values:  # by identity first, so this is fast
            for name, before, value in zip(self._names, self._values, now, strict=True):
                if value is not before:
                    yield f"{self._module}.{name}", before, value


class _Registry:
    """What one mapping of functions held when this was made: a dict, or a registry of transformers."""

    def __init__(self, name: str, mapping: Mapping[Any, Any]) -> None:
        self.name = name
        self._parts = registries(mapping)[::-1]  # what an instance holds goes over what its class does
        self.before = self.now()

    def now(self) -> dict[Any, Any]:
        return {key: value for part in self._parts for key, value in part.items()}

    def replaced(self) -> Iterator[tuple[str, Any, Any]]:
        """Yield the name, the former and the present value of each entry that is another one now, or none."""
        now = self.now()
        if now != self.before:
            for key, before in self.before.items():
                if now.get(key) is not before:
                    yield f"{self.name}[{key!r}]", before, now.get(key)


def _config(module: nn.Module) -> Any:
    return vars(module).get("config")


def _methods(kind: type) -> dict[str, Any]:
    """Return what a class itself has of its methods, by name: None for those of its bases."""
    held = [item for base in kind.__mro__[:-1] for item in vars(base).items()]
    methods = [name for name, value in held if isinstance(value, _FUNCTIONS) and name not in _TEXTS]
    return {name: vars(kind).get(name) for name in methods}


def _is_function(module: str, value: object) -> bool:
    """Return whether a value is a function that computes; of torch itself only those of its own core."""
    if not isinstance(value, _FUNCTIONS):
        return False
    return module != "torch" or not isinstance(value, types.FunctionType) or value.__module__ == "torch.functional"
