"""What torch.nn.init and transformers do to new parameters, kept from them, or told of, while a model is built."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["NO_OP_ON_META", "recorded_inits", "parameters_to_meta", "skipped_inits"]

_LARGE = 1 << 16  # elements of a parameter that is not kept where its numbers come from elsewhere

# Functions of torch.nn.init that do nothing on the meta device, and so would draw nothing.
NO_OP_ON_META = ("trunc_normal_", "_no_grad_trunc_normal_", "orthogonal_", "sparse_", "dirac_")
_WRITING = (
    "uniform_", "normal_", "trunc_normal_", "constant_", "ones_", "zeros_", "eye_", "dirac_", "xavier_uniform_",
    "xavier_normal_", "kaiming_uniform_", "kaiming_normal_", "orthogonal_", "sparse_",
)  # fmt: skip


@contextmanager
def recorded_inits(composed: Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]) -> Iterator[None]:
    """Let the functions that would do nothing be recorded as a whole, by what `composed` makes of each."""
    with _replaced(NO_OP_ON_META, composed):
        yield


@contextmanager
def skipped_inits(active: bool) -> Iterator[None]:
    """Let the functions of torch.nn.init leave empty parameters as they are: their numbers come from elsewhere.

    A buffer, and whatever else is no parameter itself, is written to as ever.
    """

    def leave(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def unless_parameter(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if type(tensor) is nn.Parameter and tensor.is_meta:
                return tensor
            return original(tensor, *args, **kwargs)

        return unless_parameter

    with _replaced(_WRITING if active else (), leave), _passing_over(active):
        yield


@contextmanager
def _passing_over(active: bool) -> Iterator[None]:
    """Let transformers pass over a module that has parameters of its own and nothing else: nothing is written there."""
    guards = sys.modules.get("transformers.modeling_utils")
    if not active or guards is None:
        yield
        return
    kind = guards.PreTrainedModel
    original = kind._initialize_weights

    def initialize(self: Any, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        if not module._parameters or module._modules or module._buffers:
            original(self, module, *args, **kwargs)
        module._is_hf_initialized = True  # type: ignore[assignment]  # a mark of transformers, which it sets itself too

    kind._initialize_weights = initialize
    try:
        yield
    finally:
        kind._initialize_weights = original


@contextmanager
def _replaced(
    names: Sequence[str], instead: Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]
) -> Iterator[None]:
    """Exchange functions of torch.nn.init, by name, for a time: there, and where transformers keeps them."""
    homes: list[dict[str, Any]] = [vars(torch.nn.init)]
    guards = sys.modules.get("transformers.initialization")
    if guards is not None:  # it keeps the originals, and calls these
        homes.append(guards.TORCH_INIT_FUNCTIONS)
    kept = [(home, name, home[name]) for home in homes for name in names if name in home]
    for home, name, original in kept:
        home[name] = instead(original)
    try:
        yield
    finally:
        for home, name, original in kept:
            home[name] = original


@contextmanager
def parameters_to_meta(active: bool) -> Iterator[None]:
    """Let large parameters that are real go to the meta device as soon as a module has them."""
    original = nn.Module.register_parameter

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta and param.numel() > _LARGE:
            attributes = dict(param.__dict__)
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
            param.__dict__.update(attributes)
        original(self, name, param)

    if not active:
        yield
        return
    nn.Module.register_parameter = register  # type: ignore[method-assign]  # for as long as the model is built
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]  # as it was
