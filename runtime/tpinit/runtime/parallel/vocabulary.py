"""Checks that token ids and labels lie in the vocabulary, as torch does in an unsharded model."""

from __future__ import annotations

import torch
from tpinit.runtime.errors import EngineError
from tpinit.runtime.internals.torch_private import assert_async

__all__ = ["check_ids", "check_targets"]


def check_ids(ids: torch.Tensor, vocabulary: int) -> None:
    """Raise EngineError for a token id outside [0, vocabulary). Each rank alone would return zeros for it.

    On a GPU the check is a device-side assertion, as in torch's own embedding: no step waits for it.
    """
    outside = (ids < 0) | (ids >= vocabulary)
    _check(
        ids, outside, f"token id {{value}}: the embedding has {vocabulary} rows, legal ids are 0 to {vocabulary - 1}"
    )


def check_targets(targets: torch.Tensor, vocabulary: int, ignore_index: int) -> None:
    """Raise EngineError for a label that is neither in [0, vocabulary) nor `ignore_index`. On a GPU as `check_ids`."""
    outside = ((targets < 0) | (targets >= vocabulary)) & (targets != ignore_index)
    message = f"label {{value}}: legal labels are 0 to {vocabulary - 1}, and {ignore_index} for ignored tokens"
    _check(targets, outside, message)


def _check(values: torch.Tensor, outside: torch.Tensor, message: str) -> None:
    if values.device.type == "cpu":
        if bool(outside.any()):
            value = int(values[outside].flatten()[0])
            raise EngineError(
                f"{message.format(value=value)}. Resize the embeddings before initialize, or correct the data"
            )
    elif values.device.type != "meta":
        assert_async(~outside.any(), message.format(value="outside of the vocabulary"))
