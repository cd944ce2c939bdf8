"""Python values as JSON, without pickle: a checkpoint that someone else wrote must not run code when it is read.

JSON's own values stay as they are. Every other value becomes an object with one key, which names its type.
"""

from __future__ import annotations

import argparse
import base64
import math
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

import torch
from tpinit.runtime.errors import CheckpointError
from tpinit.runtime.groups.digest import raw_bytes
from tpinit.runtime.internals.host_memory import memory_of

__all__ = ["DTYPES", "check_kinds", "check_like", "decode", "dtype_name", "encode", "tensor_from_bytes"]

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "bool", "complex64", "complex128",
        "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
    )
}  # fmt: skip
"""The dtypes that a checkpoint can hold, by name."""

_SHOWN = 200  # characters of what a checkpoint has, in an error
_MAX_DEPTH = 64
_MAX_INTEGER = 1 << 4096  # Python reads no integers of more than 4300 digits
_LARGEST = 1 << 62  # of a number that a run computes with
_LEGAL = (
    "None, bool, int, float, str, bytes, list, tuple, dict, set, Counter, Namespace, torch.dtype, tensors and numpy "
    "values"
)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in a checkpoint. Raises CheckpointError if a checkpoint can't hold it."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise CheckpointError(f"a checkpoint can't hold tensors of dtype {dtype}; legal are {', '.join(DTYPES)}")
    return name


def encode(value: Any, path: str, depth: int = 0) -> Any:
    """Return a value as JSON data; `path` names it in errors. Raises CheckpointError for a type it can't hold.

    Subclasses of dict, list and str become plain ones, numpy values Python's numbers and tensors. `depth` is that of
    the value; one that is deeper than 64, or holds itself, is an error.
    """
    if depth > _MAX_DEPTH:
        raise CheckpointError(f"{path[:_SHOWN]} ... is nested more than {_MAX_DEPTH} levels deep, or holds itself")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, int):
        if abs(value) > _MAX_INTEGER:
            raise CheckpointError(f"{path} is an integer of {value.bit_length()} bits: save it as a text")
        return int(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {"counter" if isinstance(value, Counter) else "dict": _encode_pairs(value, path, depth)}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [encode(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple" if isinstance(value, tuple) else "set": items}
    return _encode_object(value, path, depth)


def _encode_pairs(value: Mapping[Any, Any], path: str, depth: int) -> list[Any]:
    return [
        [encode(key, f"{path}.{str(key)[:_SHOWN]}", depth + 1), encode(item, f"{path}.{str(key)[:_SHOWN]}", depth + 1)]
        for key, item in value.items()
    ]


def _encode_object(value: Any, path: str, depth: int) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, argparse.Namespace):
        return {"namespace": _encode_pairs(vars(value), path, depth)}
    if isinstance(value, torch.dtype):
        return {"dtype": dtype_name(value)}
    if isinstance(value, PurePath):
        return str(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.item() if value.shape == () else torch.as_tensor(value)
        if not isinstance(value, torch.Tensor):
            return encode(value, path, depth)
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            raise CheckpointError(f"{path} is a sparse or quantized tensor, or one without values: save dense ones")
        tensor = value.detach().cpu().contiguous()
        data = base64.b64encode(raw_bytes(tensor)).decode()
        return {"tensor": [dtype_name(tensor.dtype), list(tensor.shape), data]}
    raise CheckpointError(
        f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint can't hold: it is "
        f"written without pickle. Legal are {_LEGAL}; save what the object is made of"
    )


def decode(value: Any) -> Any:
    """Return the value that `encode` wrote. Raises CheckpointError for any other JSON data."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise CheckpointError(f"a value of the checkpoint has {len(value)} keys and must have one: the name of a type")
    ((kind, content),) = value.items()
    try:
        return _DECODERS[kind](content)
    except CheckpointError:  # of a value inside
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        why = "".join(letter if letter.isprintable() else "?" for letter in str(error)[:_SHOWN]) or type(error).__name__
        raise CheckpointError(f"a value of the checkpoint can't be read as {kind[:_SHOWN]!r}: {why}") from error


def check_kinds(held: Mapping[str, Any], stored: Any, owner: str, reserved: Collection[str] = ()) -> None:
    """Raise ValueError unless `stored` is a dict whose values are of the kind that those of `held` have.

    Numbers are of one kind, with tensors of one element; None is of every kind. Names that `held` lacks are legal,
    unless they are `reserved`: the methods of an object whose attributes the values become.
    """
    if not isinstance(stored, dict):
        raise ValueError(f"{owner} options are a {type(stored).__name__}")
    for name, value in stored.items():
        if name not in held and name in reserved:
            raise ValueError(f"{owner} options have {str(name)[:50]!r}, which is a method")
        own = held.get(name)
        if own is not None and value is not None and _kind(own) != _kind(value):
            raise ValueError(f"{owner} {name} is a {type(value).__name__}, and here a {type(own).__name__}")


def check_like(own: Any, stored: Any, what: str) -> None:
    """Raise ValueError unless `stored` has the form of `own`: the same kinds at the same places.

    A counter may have other keys, and what is called milestones another length.
    """
    if isinstance(own, Counter):
        fits = isinstance(stored, Counter) and all(type(one) is int for pair in stored.items() for one in pair)
    elif isinstance(own, Mapping):
        fits = isinstance(stored, dict) and own.keys() == stored.keys()
        for name in own if fits else ():
            check_like(own[name], stored[name], f"{what} {name}")
    elif isinstance(own, (list, tuple)):
        free = what.endswith("milestones")
        fits = isinstance(stored, (list, tuple)) and (free or len(own) == len(stored))
        for index, value in enumerate(stored if fits else ()):
            check_like(0 if free else own[index], value, f"{what}[{index}]")
    elif isinstance(own, bool) or own is None:
        fits = type(own) is type(stored)
    else:
        fits = not isinstance(stored, bool) and _kind(own) == _kind(stored)
        fits = fits and not (isinstance(stored, int) and abs(stored) > _LARGEST)
    if not fits:
        raise ValueError(f"{what} is {str(stored)[:50]!r} in it, and {str(own)[:50]!r} here")


def _kind(value: Any) -> type:
    if isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1):
        return float
    return list if isinstance(value, (list, tuple)) else type(value)


def _decode_pairs(content: Any) -> dict[Any, Any]:
    return {decode(key): decode(item) for key, item in content}


def _decode_tensor(content: Any) -> torch.Tensor:
    name, shape, data = content
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"shape {shape!r}")
    return tensor_from_bytes(base64.b64decode(data), DTYPES[name], tuple(shape))


def tensor_from_bytes(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a CPU tensor, given its memory. Raises ValueError if the length does not fit the shape."""
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes for shape {shape} of {dtype}")
    tensor = torch.empty(shape, dtype=dtype)
    memory_of(tensor)[:] = data
    return tensor


_DECODERS: dict[str, Any] = {
    "float": lambda content: float(str(content)),
    "counter": lambda content: Counter(_decode_pairs(content)),
    "dict": _decode_pairs,
    "tuple": lambda content: tuple(decode(item) for item in content),
    "set": lambda content: {decode(item) for item in content},
    "bytes": lambda content: base64.b64decode(content),
    "namespace": lambda content: argparse.Namespace(**_decode_pairs(content)),
    "dtype": lambda content: DTYPES[content],
    "tensor": _decode_tensor,
}
