"""Checks that token ids and labels lie in the vocabulary, as torch does in an unsharded model."""

from __future__ import annotations

import torch
from tpinit.runtime.errors import EngineError
from tpinit.runtime.internals.torch_private import assert_async
from tpinit.runtime.parallel.full_graph import graph_break

__all__ = ["check_ids", "check_targets"]


def check_ids(ids: torch.Tensor, vocabulary: int) -> None:
    """Raise EngineError for a token id outside [0, vocabulary), for which each rank alone would return zeros.

    Also for ids that are not an int32 or int64 tensor. On a GPU the check is a device-side assertion, as in torch's own
    embedding: no step waits for it.
    """
    _check_dtype("token ids", ids, (torch.int32, torch.int64))
    outside = (ids < 0) | (ids >= vocabulary)
    _check(
        ids, outside, f"token id {{value}}: the embedding has {vocabulary} rows, legal ids are 0 to {vocabulary - 1}"
    )


def check_targets(targets: torch.Tensor, count: int, vocabulary: int, ignore_index: int) -> torch.Tensor:
    """Return the labels of `count` tokens as int64 [count].

    Raises EngineError for a label that is neither in [0, vocabulary) nor `ignore_index` (on a GPU as `check_ids`), for
    another number of labels, and for labels that are not integers.
    """
    _check_dtype("labels", targets, (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8))
    if targets.numel() != count:
        raise EngineError(f"{targets.numel()} labels for {count} tokens: give one label for each token of input_ids")
    targets = targets.long()
    outside = ((targets < 0) | (targets >= vocabulary)) & (targets != ignore_index)
    message = f"label {{value}}: legal labels are 0 to {vocabulary - 1}, and {ignore_index} for ignored tokens"
    _check(targets, outside, message)
    return targets


def _check_dtype(what: str, values: object, legal: tuple[torch.dtype, ...]) -> None:
    if not isinstance(values, torch.Tensor):
        raise EngineError(f"{what} are a {type(values).__name__}, and must be a tensor: torch.tensor(...) makes one")
    if values.dtype not in legal:
        raise EngineError(f"{what} are {values.dtype}, and must be integers: {', '.join(map(str, legal))}")


@graph_break
def _check(values: torch.Tensor, outside: torch.Tensor, message: str) -> None:
    if values.device.type == "cpu":
        if bool(outside.any()):
            value = int(values[outside].flatten()[0])
            raise EngineError(
                f"{message.format(value=value)}. Resize the embeddings before initialize, or correct the data"
            )
    elif values.device.type != "meta":
        assert_async(~outside.any(), message.format(value="outside of the vocabulary"))
