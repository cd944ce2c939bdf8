"""What a constructor does to new parameters while a model is built: recorded, or moved to the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from tpinit.runtime.internals import torch_private, transformers_private

__all__ = ["parameters_to_meta", "recorded_inits"]

_LARGE = 1 << 16  # elements; a smaller parameter stays real

InitFunction = Callable[..., torch.Tensor]


@contextmanager
def recorded_inits(recording: Callable[[InitFunction], InitFunction]) -> Iterator[None]:
    """Replace the functions of torch.nn.init that do nothing on the meta device by what `recording` returns for each.

    They are replaced in torch.nn.init and where transformers keeps the originals.
    """
    namespaces: list[MutableMapping[str, Any]] = [torch_private.init_namespace()]
    of_transformers = transformers_private.init_namespace()
    if of_transformers is not None:
        namespaces.append(of_transformers)
    originals = [
        (namespace, name, namespace[name])
        for namespace in namespaces
        for name in torch_private.NO_OP_ON_META
        if name in namespace
    ]
    for namespace, name, original in originals:
        namespace[name] = recording(original)
    try:
        yield
    finally:
        for namespace, name, original in originals:
            namespace[name] = original


@contextmanager
def parameters_to_meta(active: bool) -> Iterator[None]:
    """Move each real parameter of more than 65,536 elements to the meta device when a module registers it.

    Without `active` nothing is moved.
    """

    def to_meta(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or parameter.numel() <= _LARGE:
            return None
        attributes = dict(parameter.__dict__)
        moved = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        moved.__dict__.update(attributes)
        return moved

    if not active:
        yield
        return
    hook: Any = to_meta  # torch's annotation leaves out that a hook may return a parameter
    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()
