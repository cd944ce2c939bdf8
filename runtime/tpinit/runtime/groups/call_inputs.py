"""The inputs of one call of a model as leaves that ranks compare: what a forward computes from, and nothing else.

Two ranks are given the same inputs if they mean the same to the model. Integers count by their values, so int32 and
int64 ids agree; an attention mask of ones counts as no mask; an argument that is left out counts as its default; a
positional argument counts as the parameter that it is bound to. Everything else is compared exactly.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from types import FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from tpinit.runtime.groups.digest import digest, raw_bytes

__all__ = ["Leaf", "describe", "fingerprint", "has_fake_tensors", "leaves"]

Leaf = tuple[str, object]
"""The path of a value among the arguments (`labels`, `encoder_outputs[0]`), and a tensor or a text that stands for it.
"""

_DEPTH = 8  # of nested containers
_SHOWN = 8  # values of a tensor in an error
_DIRECT = 1 << 15  # bytes up to which hashing all of them is faster than the digest of a large tensor
_CACHES = ("past_key_value", "past_key_values", "cache_params", "layer_past", "mems")  # each rank's own heads
_PER_RANK = ("streamer",)  # output of one rank: what a model computes does not depend on it

_signatures: WeakKeyDictionary[FunctionType, inspect.Signature] = WeakKeyDictionary()  # of methods, by their functions


def leaves(function: Callable[..., Any], args: Sequence[object], kwargs: Mapping[str, object]) -> list[Leaf]:
    """Return the leaves of the arguments of a call of `function`, ordered by name."""
    named = _bound(function, args, kwargs)
    return [leaf for name in sorted(named) for leaf in _leaves(named[name], name, name in _CACHES)]


def _bound(function: Callable[..., Any], args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
    """Return the arguments by parameter, without those that are equal to the parameter's default."""
    try:
        signature = _signature(function)
        bound = signature.bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return {f"argument {position}": value for position, value in enumerate(args)} | dict(kwargs)
    named: dict[str, object] = {}
    for name, value in bound.items():
        parameter = signature.parameters[name]
        if parameter.kind is parameter.VAR_KEYWORD:
            named.update(value)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            named.update({f"argument {position}": inner for position, inner in enumerate(value)})
        elif value is not parameter.default:
            named[name] = value
    return {name: value for name, value in named.items() if value is not None and name not in _PER_RANK}


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a function; that of a method is remembered, for reading it takes long."""
    if not isinstance(function, MethodType) or not isinstance(function.__func__, FunctionType):
        return inspect.signature(function)
    signature = _signatures.get(function.__func__)
    if signature is None:
        signature = _signatures[function.__func__] = inspect.signature(function)
    return signature


def _leaves(value: object, path: str, cache: bool, depth: int = 0) -> Iterator[Leaf]:
    if isinstance(value, torch.Tensor):
        if not _is_full_mask(value, path):
            yield path, f"a cache of {value.dtype}" if cache else value
    elif depth == _DEPTH or callable(getattr(value, "get_seq_length", None)):
        yield path, _text(value)
    elif isinstance(value, Mapping) or hasattr(value, "keys"):
        for key in sorted(value, key=str):  # type: ignore[call-overload]  # a mapping, by its keys
            yield from _leaves(value[key], f"{path}.{key}", cache, depth + 1)  # type: ignore[index]  # the same
    elif isinstance(value, (list, tuple)) and any(not isinstance(inner, (int, float, str)) for inner in value):
        yield f"{path} (length)", str(len(value))
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]", cache, depth + 1)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _leaves(getattr(value, field.name), f"{path}.{field.name}", cache, depth + 1)
    else:
        yield path, _text(value)


def _is_full_mask(tensor: torch.Tensor, path: str) -> bool:
    """Return whether a tensor is an attention mask [batch, tokens] that masks nothing."""
    is_mask = path.endswith("attention_mask") and tensor.dim() == 2 and not tensor.is_floating_point()
    return is_mask and not (tensor.is_meta or _is_fake(tensor)) and bool((tensor == 1).all())


def _text(value: object) -> str:
    """Return a text that is equal on two ranks for values of one meaning. Objects count by their type only."""
    if isinstance(value, (bool, int, float, complex, str, bytes, list, tuple, torch.dtype, Enum)):
        return repr(value)
    length = getattr(value, "get_seq_length", None)
    if callable(length):
        try:
            return f"{type(value).__name__} of {int(length())} tokens"
        except Exception:  # a cache of a kind that has no length: its type has to do
            return type(value).__name__
    if hasattr(value, "__array_interface__"):  # an array of numpy, or one of its scalars
        return digest(torch.as_tensor(value))
    settings = getattr(value, "to_dict", None)
    if callable(settings) and not isinstance(value, type):
        return f"{type(value).__name__} {sorted((str(key), repr(item)) for key, item in settings().items())}"
    return type(value).__qualname__


def has_fake_tensors(args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    """Return whether an argument is a fake tensor: then nothing is computed, and there is nothing to compare."""
    return any(_is_fake(value) for value in (*args, *kwargs.values()))


def _is_fake(value: object) -> bool:
    return type(value).__name__ == "FakeTensor"


def fingerprint(found: Sequence[Leaf]) -> int:
    """Return a 63-bit hash of the paths, shapes, dtypes and values of the leaves."""
    hashed = hashlib.blake2b(digest_size=8)
    for path, value in found:
        hashed.update(path.encode())
        if isinstance(value, torch.Tensor):
            _hash_tensor(hashed, value)
        else:
            hashed.update(str(value).encode())
        hashed.update(b"\0")
    return int.from_bytes(hashed.digest(), "little") >> 1


def _hash_tensor(hashed: Any, tensor: torch.Tensor) -> None:
    tensor = _by_meaning(tensor.detach())
    hashed.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if type(tensor) is not torch.Tensor or tensor.is_meta or tensor.layout is not torch.strided:
        hashed.update(f"{type(tensor).__name__}{tensor.layout}".encode())
    elif tensor.device.type == "cpu" and tensor.numel() * tensor.element_size() <= _DIRECT:
        hashed.update(raw_bytes(tensor.contiguous()))
    else:
        hashed.update(digest(tensor).encode())


def _by_meaning(tensor: torch.Tensor) -> torch.Tensor:
    """Return integers as int64, and other tensors as they are."""
    exact = tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool or tensor.is_quantized
    return tensor if exact or tensor.layout is not torch.strided else tensor.long()


def describe(found: Sequence[Leaf]) -> dict[str, object]:
    """Return what an error shows of each leaf, by its path: of a tensor its dtype, shape, first values and hash."""
    return {
        f"input {path}": _describe_tensor(value) if isinstance(value, torch.Tensor) else value for path, value in found
    }


def _describe_tensor(tensor: torch.Tensor) -> str:
    meaning = _by_meaning(tensor.detach())
    text = f"{str(meaning.dtype).removeprefix('torch.')} {list(meaning.shape)}"
    if type(meaning) is not torch.Tensor or meaning.is_meta or meaning.layout is not torch.strided:
        return f"{text} ({type(meaning).__name__}, {meaning.layout})"
    first = meaning.reshape(-1)[:_SHOWN].tolist()
    values = ", ".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in first)
    more = ", ..." if meaning.numel() > _SHOWN else ""
    return f"{text} [{values}{more}], hash {fingerprint([('', tensor)]) & 0xFFFFFFFF:08x}"
