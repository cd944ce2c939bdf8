"""Which code a model runs: only that of the installed torch, transformers and peft, or anything else.

The planner folds equal layers, and the probe is left out by default, only for known code, on which both were tested.
Code of a user may do anything: branch on the type of a layer's index, count calls, look its layer up in a list.
"""

from __future__ import annotations

import functools
import os
import sys
import types
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from tpinit.runtime.internals.mode_private import COMPILED_NAMES
from tpinit.runtime.internals.torch_private import CHILDREN, TENSORS

__all__ = ["KnownCode", "look_once", "registries", "unknown_code"]

_LIBRARIES = "huggingface_hub packaging numpy tqdm safetensors tokenizers regex requests httpx yaml filelock PIL"
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "typing_extensions", *_LIBRARIES.split())
_RUNTIME = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
_TYPES_FROM = frozenset((*_PACKAGES, "tpinit", "builtins", *sys.stdlib_module_names))
# The modules that are searched for functions that were replaced: those that a forward runs.
_SEARCHED = (
    "transformers.models.",
    "transformers.integrations.",
    "transformers.masking_utils",
    "transformers.activations",
    "transformers.modeling_",
    "peft.tuners.",
)
_PLAIN_TYPES = frozenset((bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size))
_CONTAINERS = frozenset((dict, OrderedDict, list, tuple, set, frozenset))
_DEPTH = 6  # of nested wrappers, closures and containers
_WITHOUT_CODE = frozenset(
    (
        types.BuiltinFunctionType,
        types.MethodDescriptorType,
        types.WrapperDescriptorType,
        types.MethodWrapperType,
        types.ClassMethodDescriptorType,
        types.GetSetDescriptorType,
        types.MemberDescriptorType,
        types.ModuleType,
        torch.Tensor,
        nn.Parameter,
    )
)
_looked: ContextVar[dict[int, tuple[nn.Module, str | None]] | None] = ContextVar("looked", default=None)
_KNOWN_CODES: set[types.CodeType] = set()  # of functions that hold no other function


def unknown_code(model: nn.Module, inputs: Mapping[str, Any] | None = None) -> str | None:
    """Return in words the first code of a model that is none of torch, transformers or peft; None if there is none.

    Looked at are the methods of the classes of all modules, the functions and objects in their attributes and hooks
    and in `inputs`, all functions and registries that are global where the code of the model is defined, and those of
    torch and torch.nn.functional. A function counts by the file that its code comes from, so one that replaces a
    function of a package is unknown. Within `look_once` each model is looked at once.
    """
    looked = _looked.get()
    if looked is None:
        found = _unknown_of(model)
    else:
        if id(model) not in looked:
            looked[id(model)] = model, _unknown_of(model)
        found = looked[id(model)][1]
    name = KnownCode().first_unknown(inputs or {}) if found is None else None
    return f"the input {name}" if name is not None else found


@contextmanager
def look_once() -> Iterator[None]:
    """Remember what `unknown_code` finds in a model until the end of the context: nothing is replaced meanwhile."""
    token = _looked.set({})
    try:
        yield
    finally:
        _looked.reset(token)


def _unknown_of(model: nn.Module) -> str | None:
    known = KnownCode()
    kinds = {type(module) for module in model.modules()}
    for base in dict.fromkeys(base for kind in kinds for base in kind.__mro__ if base is not object):
        if not _is_known_type(base):
            return f"class {base.__module__}.{base.__qualname__}"
        name = known.first_unknown(vars(base))
        if name is not None:
            return f"{base.__qualname__}.{name}, which was replaced"
    for space, names in known.search(kinds):
        name = known.first_unknown(names)
        if name is not None:
            return f"{space}.{name}, which was replaced or added"
    for module in model.modules():
        attribute = known.first_unknown_attribute(module)
        if attribute is not None:
            return f"the attribute {attribute} of a {type(module).__qualname__}"
    return None


class KnownCode:
    """Decides whether values are known code, and remembers what it has decided.

    `namespaces` are the global names, by module, of the functions that were looked at.
    """

    def __init__(self) -> None:
        files = [getattr(sys.modules.get(name), "__file__", None) for name in _PACKAGES]
        self._roots = tuple(file.removesuffix("__init__.py") for file in (*files, _RUNTIME) if file is not None)
        self._library = os.path.dirname(os.__file__) + os.sep
        self._seen: dict[int, tuple[Any, bool]] = {}
        self.namespaces = {"torch": vars(torch), "torch.nn.functional": vars(torch.nn.functional)}

    def search(self, kinds: Iterable[type]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the modules whose functions a forward of these classes may call, with their functions and registries.

        It follows the functions that the caller looks at between two of them. What torch.compile adds to a module is
        left out: only compiled code names it.
        """
        for kind in kinds:
            self.namespaces.setdefault(kind.__module__, vars(sys.modules[kind.__module__]))
        searched: set[str] = set()
        while len(searched) < len(self.namespaces):
            for space in sorted(self.namespaces.keys() - searched):
                searched.add(space)
                held = list(self.namespaces[space].items())
                yield (
                    space,
                    {
                        name: value
                        for name, value in held
                        if (callable(value) or isinstance(value, Mapping)) and not name.startswith(COMPILED_NAMES)
                    },
                )

    def first_unknown(self, values: Mapping[str, Any]) -> str | None:
        """Return the name of the first value that is not known; None if all are."""
        return next((name for name, value in list(values.items()) if not self.is_known(value)), None)

    def first_unknown_attribute(self, module: nn.Module) -> str | None:
        """Return the name of the first attribute of a module that is not known: parameters, buffers and hooks too."""
        for name, value in module.__dict__.items():
            kind = value.__class__
            if kind in _PLAIN_TYPES or name == CHILDREN or (kind in _CONTAINERS and not value):
                continue
            if name in TENSORS:
                if not all(held.__class__ in _WITHOUT_CODE or self.is_known(held) for held in value.values()):
                    return name
            elif not self.is_known(value):
                return name
        return None

    def is_known(self, value: Any, depth: int = 0) -> bool:
        """Return whether a value holds no code but that of the known packages and of Python itself."""
        kind = value.__class__
        if kind in _PLAIN_TYPES or kind in _WITHOUT_CODE or depth > _DEPTH:
            return True
        if kind is types.FunctionType:
            space = value.__module__
            if space not in self.namespaces and str(space).startswith(_SEARCHED) and space in sys.modules:
                self.namespaces[space] = value.__globals__
            if value.__code__ in _KNOWN_CODES:
                return True
        seen = self._seen.get(id(value))
        if seen is None:
            self._seen[id(value)] = value, True  # a function may hold itself
            seen = self._seen[id(value)] = value, self._decide(value, depth + 1)
        return seen[1]

    def _decide(self, value: Any, depth: int) -> bool:
        if isinstance(value, types.FunctionType):
            return self._is_known_function(value, depth)
        if isinstance(value, types.MethodType):
            return self._all((value.__func__, value.__self__), depth)
        if isinstance(value, functools.partial):
            return self._all((value.func, *value.args, *value.keywords.values()), depth)
        if isinstance(value, (staticmethod, classmethod)):
            return self.is_known(value.__func__, depth)
        if isinstance(value, property):
            return self._all((value.fget, value.fset, value.fdel), depth)
        if isinstance(value, type):
            return _is_known_type(value) or not issubclass(value, (nn.Module, torch.autograd.Function))
        if not _is_known_type(type(value)):
            return False
        if isinstance(value, Mapping):
            return self._all(_held(value), depth)
        return self._all(value, depth) if type(value) in _CONTAINERS else True

    def _is_known_function(self, function: types.FunctionType, depth: int) -> bool:
        path = function.__code__.co_filename
        if not path.startswith((*self._roots, "<frozen ")) and not (
            path.startswith(self._library) and f"-packages{os.sep}" not in path
        ):
            return False
        wrapped = function.__dict__.get("__wrapped__")
        if function.__closure__ is None and wrapped is None:
            _KNOWN_CODES.add(function.__code__)
            return True
        return self._all([wrapped, *(cell for cell in _cells(function) if callable(cell))], depth)

    def _all(self, values: Iterable[Any], depth: int) -> bool:
        return all(self.is_known(value, depth) for value in values)


def _is_known_type(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _TYPES_FROM


def _held(value: Mapping[Any, Any]) -> list[Any]:
    """Return what a mapping holds; for a registry of transformers, which makes values on demand, what is registered."""
    return [item for part in registries(value) for item in dict.values(part)]


def registries(value: Mapping[Any, Any]) -> list[dict[Any, Any]]:
    """Return the dicts in which a mapping keeps its values: itself, or those of a registry of transformers."""
    if isinstance(value, dict):
        return [value]
    parts = [part for holder in (value, *type(value).__mro__) for part in getattr(holder, "__dict__", {}).values()]
    return [part for part in parts if isinstance(part, dict)]


def _cells(function: types.FunctionType) -> Iterator[Any]:
    """Yield what a function holds from the scope around it."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # the cell is not assigned yet
            yield cell.cell_contents
