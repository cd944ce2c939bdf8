"""Replacements for random operations, so that a model in training mode drops nothing and runs can be compared.

Dropout draws a mask and scales it: its replacement returns ones. Layer drop draws a number in [0, 1) and skips the
layer if the number is small: its replacement returns 0.99. All other random operations of torch (random rotations of
hashed attention, samples, permutations) run unchanged, because no constant can replace them. Python's and numpy's
generators start from a fixed seed.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tpinit.runtime.internals.torch_private import PlainDispatchMode, named_arguments
from tpinit.runtime.parallel.device_rng import preserved_torch_rng
from tpinit.runtime.parallel.host_rng import host_rng_states, numpy_random, set_host_rng_states

__all__ = ["DropoutDisabled", "fixed_host_rng", "preserved_rng", "without_dropout"]

_HIGH = 0.99  # below 1 in every dtype, and above every drop rate in use


def without_dropout(func: Any, args: Any, kwargs: Any) -> Callable[..., Any] | None:
    """Return a function that takes the same arguments as `func` and drops nothing; None if `func` drops nothing."""
    if _has_attention_dropout(func, args, kwargs):
        return _without_attention_dropout(func)
    return _REPLACEMENTS.get(func)


class DropoutDisabled(PlainDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    """A dispatch mode under which no operation of torch drops anything."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (without_dropout(func, args, kwargs) or func)(*args, **(kwargs or {}))


@contextmanager
def fixed_host_rng() -> Iterator[None]:
    """Make Python's `random` and `numpy.random` return the same numbers in every run, for the time of the context.

    Both are seeded with 0, and the functions that draw from [0, 1) return 0.99, so that no layer is skipped. The seeds
    are not restored: see `preserved_rng`.
    """
    numpy = numpy_random()
    random.seed(0)
    replacements: list[tuple[Any, str, Any]] = [(random, "random", _high_number), (random, "uniform", _high_between)]
    if numpy is not None:
        numpy.seed(0)
        replacements += [(numpy, "random", _high_number), (numpy, "uniform", _high_between)]
        replacements.append((numpy, "rand", lambda *size: _high_number(size or None)))
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    try:
        for owner, name, replacement in replacements:
            setattr(owner, name, replacement)
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


@contextmanager
def preserved_rng(*devices: torch.device) -> Iterator[None]:
    """Restore the RNG states of torch (on the CPU and these devices), Python and numpy when the context ends."""
    host_states = host_rng_states()
    try:
        with preserved_torch_rng(*devices):
            yield
    finally:
        set_host_rng_states(*host_states)


def _high_number(size: Any = None) -> Any:
    return _HIGH if size is None else sys.modules["numpy"].full(size, _HIGH)


def _high_between(low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
    return low + (high - low) * _high_number(size)


def _has_attention_dropout(func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether `func` is a fused attention whose argument `dropout_p` is above 0."""
    return "attention" in func.__name__ and bool(named_arguments(func, args, kwargs).get("dropout_p", 0.0))


def _without_attention_dropout(func: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: func(**named_arguments(func, args, kwargs) | {"dropout_p": 0.0})


def _high_rand(shape: Any, *_: Any, **options: Any) -> torch.Tensor:
    return torch.full(shape, _HIGH, **{name: value for name, value in options.items() if name != "generator"})


def _high_uniform(drawn: torch.Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> torch.Tensor:
    return drawn.fill_(low + _HIGH * (high - low))


def _keep_all(features: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return features.clone(), torch.ones_like(features, dtype=torch.bool)


_aten = torch.ops.aten
_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    # Dropout divides the mask by the probability of a one: a mask of that probability gives ones.
    _aten.bernoulli_.float: lambda drawn, p=0.5, **_: drawn.fill_(p),
    _aten.bernoulli_.Tensor: lambda drawn, p, **_: drawn.copy_(p),
    _aten.bernoulli.default: lambda p, **_: p.clone(),
    _aten.bernoulli.p: lambda like, p=0.5, **_: torch.full_like(like, p),
    _aten.native_dropout.default: _keep_all,
    _aten.rand.default: _high_rand,
    _aten.rand.generator: _high_rand,
    _aten.rand_like.default: lambda like, **options: torch.full_like(like, _HIGH, **options),
    _aten.uniform_.default: _high_uniform,
}
