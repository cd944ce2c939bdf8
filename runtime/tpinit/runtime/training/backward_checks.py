"""When `engine.backward` can't run: nothing has been computed then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tpinit.runtime.errors import EngineError

if TYPE_CHECKING:
    from tpinit.runtime.training.engine import Engine

__all__ = ["check_backward"]


def check_backward(engine: Engine, loss: object) -> None:
    """Raise EngineError for a loss that is no scalar tensor with a gradient, and for a call out of order."""
    engine._call_check.check_alive("backward")
    if engine.optimizer is None:
        raise EngineError("backward needs an optimizer: name one in the config or pass one to initialize")
    if engine._reduced and not engine._synchronizes:
        raise EngineError(
            "backward inside no_sync comes after a backward that has averaged the gradients: call engine.step() "
            "between them, or put no_sync around the earlier ones"
        )
    if not isinstance(loss, torch.Tensor):
        raise EngineError(f"backward got a {type(loss).__qualname__}, and needs a scalar tensor: the loss of a forward")
    if loss.numel() != 1:
        raise EngineError(
            f"backward got a tensor of shape {list(loss.shape)}, and needs a scalar: call mean() or sum()"
        )
    if not loss.requires_grad:
        raise EngineError(
            "backward got a loss that depends on no trained parameter: it was detached, or computed under "
            "torch.no_grad(), or all parameters are frozen (requires_grad=False)"
        )
