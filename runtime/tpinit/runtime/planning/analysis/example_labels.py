"""Labels for a small batch, so that a model computes its loss: what training runs is what the planner traces."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from tpinit.runtime.planning.analysis.example_inputs import unwrap_adapters

__all__ = ["example_labels"]

_TOKENS = ("decoder_input_ids", "input_ids")


def example_labels(model: nn.Module, inputs: Mapping[str, Any]) -> list[dict[str, torch.Tensor]]:
    """Return the labels to try with `inputs`, as keyword arguments, the likeliest first; empty if none are needed.

    A label for each token [rows, tokens], one for each row [rows] as int64 or float32, or the start and end of a span.
    Empty if the forward takes no labels, or if `inputs` holds some already.
    """
    _, inner = unwrap_adapters(model)
    try:
        names = inspect.signature(inner.forward).parameters
    except (TypeError, ValueError):
        return []
    if "labels" in inputs or "start_positions" in inputs:
        return []
    rows = [value for value in inputs.values() if isinstance(value, torch.Tensor) and value.dim()]
    if not rows:
        return []
    by_row = torch.zeros(len(rows[0]), dtype=torch.int64, device=rows[0].device)
    labels: list[dict[str, torch.Tensor]] = []
    if "labels" in names:
        labels += [{"labels": inputs[name]} for name in _TOKENS if isinstance(inputs.get(name), torch.Tensor)][:1]
        labels += [{"labels": by_row}, {"labels": by_row.float()}]
        if "SequenceClassification" in type(inner).__name__:
            labels = labels[1:] + labels[:1]
    if "start_positions" in names and "end_positions" in names:
        labels.append({"start_positions": by_row, "end_positions": by_row})
    return labels
