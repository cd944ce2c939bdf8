"""A batch on another device than the model: one error that names the tensors and both devices.

The engine moves no inputs. The ids, embeddings or pixels that a model begins with are checked before a forward; another
tensor may be elsewhere on purpose (a grid of image sizes is read on the CPU), so it is named only if the forward fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from tpinit.runtime.errors import DeviceError
from tpinit.runtime.groups.call_inputs import Leaf, leaves

__all__ = ["explained", "misplaced", "misplaced_error"]

_FIRST = ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")


def misplaced(found: Sequence[Leaf], device: torch.device, model: nn.Module | None = None) -> list[str]:
    """Return the tensors that are not on `device`, as "path on device". 0-d tensors may be anywhere.

    With a `model`, only those that its first layer reads.
    """
    first = None if model is None else {*_FIRST, getattr(model, "main_input_name", "input_ids")}
    return [
        f"{path} on {value.device}"
        for path, value in found
        if isinstance(value, torch.Tensor)
        and value.dim()
        and value.device != device
        and (first is None or path in first)
    ]


def misplaced_error(found: Sequence[str], device: torch.device) -> DeviceError:
    """Return the error for these tensors, as `misplaced` names them."""
    return DeviceError(
        f"the batch is not where the model is: {', '.join(found)}, the model on {device}; the engine moves no inputs: "
        "batch = {name: value.to(engine.device) for name, value in batch.items()}"
    )


def explained(
    error: RuntimeError, model: nn.Module, device: torch.device, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> DeviceError | None:
    """Return the error to raise if a forward failed because of tensors on several devices; None for another error."""
    found = misplaced(leaves(model.forward, args, kwargs), device) if "device" in str(error) else []
    return misplaced_error(found, device) if found else None
