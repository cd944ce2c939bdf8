"""Training in which chance drops nothing: then two runs of it can be compared, and all of the model is seen.

Dropout draws one number for each feature, and multiplies by it: here by one. A block that is skipped now and then draws
a number of [0, 1) and is skipped where it is low: here it is high. What else torch draws (the rotations of hashed
attention, samples, permutations) has nothing in its place; what Python and numpy draw is the same in every run.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from tpinit.runtime.parallel.host_rng import host_rng_states, numpy_random, set_host_rng_states

__all__ = ["DropoutDisabled", "fixed_host_rng", "preserved_rng", "without_dropout"]

_HIGH = 0.99  # below 1 in every dtype, and above every share that is dropped


def without_dropout(func: Any, args: Any, kwargs: Any) -> Callable[..., Any] | None:
    """Return what does an operation's work and drops nothing, for the same arguments; None where it drops nothing."""
    if _drops(func, args, kwargs):
        return _without_dropout(func)
    return _UNDROPPED.get(func)


class DropoutDisabled(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves the base untyped
    """Lets operations drop nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the same

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that nothing here needs to be kept from a compiler: that guard costs more than what it guards."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (without_dropout(func, args, kwargs) or func)(*args, **(kwargs or {}))


@contextmanager
def fixed_host_rng() -> Iterator[None]:
    """Let Python and numpy draw the same numbers in every run: of [0, 1) high ones. Their streams begin anew."""
    numpy = numpy_random()
    random.seed(0)
    changed: list[tuple[Any, str, Any]] = [(random, "random", _high_number), (random, "uniform", _high_between)]
    if numpy is not None:
        numpy.seed(0)
        changed += [(numpy, "random", _high_number), (numpy, "uniform", _high_between)]
        changed.append((numpy, "rand", lambda *size: _high_number(size or None)))
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in changed]
    try:
        for owner, name, high in changed:
            setattr(owner, name, high)
        yield
    finally:
        for owner, name, own in kept:
            setattr(owner, name, own)


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Leave the streams of random numbers of torch, Python and numpy as they are now, whatever runs inside."""
    before = host_rng_states()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        set_host_rng_states(*before)


def _high_number(size: Any = None) -> Any:
    return _HIGH if size is None else sys.modules["numpy"].full(size, _HIGH)


def _high_between(low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
    return low + (high - low) * _high_number(size)


def _drops(func: Any, args: Any, kwargs: Any) -> bool:
    """Tell whether this is a fused attention that is asked to drop out: its probability is an argument."""
    return "attention" in func.__name__ and bool(_given(func, args, kwargs or {}).get("dropout_p", 0.0))


def _given(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    return {**dict(zip([one.name for one in func._schema.arguments], args, strict=False)), **kwargs}


def _without_dropout(func: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: func(**_given(func, args, kwargs) | {"dropout_p": 0.0})


def _high_rand(shape: Any, *_: Any, **how: Any) -> torch.Tensor:
    return torch.full(shape, _HIGH, **{name: one for name, one in how.items() if name != "generator"})


def _high_uniform(drawn: torch.Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> torch.Tensor:
    return drawn.fill_(low + _HIGH * (high - low))


def _all_of(features: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return features.clone(), torch.ones_like(features, dtype=torch.bool)


_aten = torch.ops.aten
_UNDROPPED: dict[Any, Callable[..., Any]] = {
    # Dropout divides what it draws by the probability that it draws 1: that probability in its place gives 1.
    _aten.bernoulli_.float: lambda drawn, chance=0.5, **_: drawn.fill_(chance),
    _aten.bernoulli_.Tensor: lambda drawn, chance, **_: drawn.copy_(chance),
    _aten.bernoulli.default: lambda chance, **_: chance.clone(),
    _aten.bernoulli.p: lambda like, chance=0.5, **_: torch.full_like(like, chance),
    _aten.native_dropout.default: _all_of,
    _aten.rand.default: _high_rand,
    _aten.rand.generator: _high_rand,
    _aten.rand_like.default: lambda like, **how: torch.full_like(like, _HIGH, **how),
    _aten.uniform_.default: _high_uniform,
}
