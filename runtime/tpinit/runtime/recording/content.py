"""What a recording reads of the process: elements of constants, states of generators, tensors that live already."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from tpinit.runtime.internals.record_private import storage_identity
from tpinit.runtime.internals.torch_private import tree_leaves

__all__ = ["content", "living_storages", "random_state", "tensors_of"]

_NUMBERS = 64  # of a constant, at most, that a graph has as numbers


def tensors_of(nested: Any) -> list[torch.Tensor]:
    """Return the tensors in nested lists, tuples and dicts, in order."""
    return [one for one in tree_leaves(nested) if isinstance(one, torch.Tensor)]


def content(tensor: torch.Tensor) -> tuple[str, tuple[str, ...]]:
    """Return a digest of a tensor's elements, dtype and shape, and its elements as text if there are at most 64."""
    held = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    digest = hashlib.sha256(f"{held.dtype} {tuple(held.shape)} ".encode())
    digest.update(held.reshape(-1).view(torch.uint8).numpy().tobytes())
    if held.numel() > _NUMBERS or held.is_complex():
        return digest.hexdigest()[:32], ()
    return digest.hexdigest()[:32], tuple(map(_text, held.reshape(-1).tolist()))


def _text(number: float | bool) -> str:
    return str(int(number)) if isinstance(number, bool) else repr(number)


def random_state(operator: Any, given: Mapping[str, Any]) -> str | None:
    """Return a digest of the state of the generator that an operator may draw from; None for one that draws nothing.

    `given` are its arguments by name.
    """
    if torch.Tag.nondeterministic_seeded not in operator.tags:
        return None
    generator = given.get("generator")
    if generator is None:
        devices = [one.device for one in tensors_of(list(given.values()))]
        device = devices[0] if devices else torch.device(given.get("device") or "cpu")
        generator = torch.default_generator
        if device.type == "cuda":
            index = device.index if device.index is not None else torch.cuda.current_device()
            generator = torch.cuda.default_generators[index]
    return hashlib.sha256(generator.get_state().numpy().tobytes()).hexdigest()[:16]


def living_storages() -> dict[int, torch.UntypedStorage]:
    """Return the storages of all dense tensors that Python or a gradient shows now, by their identities."""
    kinds = set(_subclasses(torch.Tensor))
    found = {}
    for one in [one for one in gc.get_objects() if type(one) in kinds]:
        for tensor in (one, one.grad if one.is_leaf else None):
            if tensor is not None and tensor.layout is torch.strided and type(tensor) in (torch.Tensor, _PARAMETER):
                storage = tensor.untyped_storage()
                found[storage_identity(storage)] = storage
    return found


_PARAMETER = torch.nn.Parameter


def _subclasses(kind: type) -> Iterator[type]:
    yield kind
    subclasses: Iterable[type] = kind.__subclasses__()
    for one in subclasses:
        yield from _subclasses(one)
