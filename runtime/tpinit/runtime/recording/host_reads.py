"""What passes between tensors and the host without an operator: lists and arrays that are read, and made to tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from tpinit.runtime.recording.content import tensors_of

__all__ = ["HostReads"]

_READS = {
    torch.Tensor.tolist: "tolist",
    torch.Tensor.numpy: "numpy",
    torch.Tensor.__array__: "numpy",
    torch.Tensor.__dlpack__: "dlpack",
}
_MAKERS = (torch.from_numpy, torch.frombuffer, torch.as_tensor, torch.asarray, torch.utils.dlpack.from_dlpack)


class HostReads(TorchFunctionMode):
    """Tells which tensors the host reads whole, in front of each read, and which tensors it makes from its own data."""

    def __init__(self, read: Callable[[torch.Tensor, str], None], made: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self._read = read
        self._made = made

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function of torch."""
        kind = _READS.get(func)
        if kind is not None:
            self._read(args[0], kind)
        result = func(*args, **(kwargs or {}))
        if func in _MAKERS and not tensors_of([args, kwargs]):  # as_tensor of a tensor makes none
            self._made(result)
        return result
