"""Layer specs: one entry of `partition_config.layer_specs` or of a preset, and the fused parts that its shape names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tpinit.runtime.planning.analysis.linears import LinearInfo

__all__ = ["Spec", "SpecError", "fused_parts", "read_spec"]

_Shape = Sequence[int | tuple[int, ...]]


class SpecError(Exception):
    """A spec does not fit the layer that it matches; the text says why."""


@dataclass(frozen=True, slots=True)
class Spec:
    """Which layers are sharded how. The fields are named after the keys of a layer spec in the config.

    `partition_type` is column, row or skip. `location` says where the spec was written, for messages. A spec applies to
    a parameter if one of its patterns matches at the start of the parameter's name and `model_types` allows the model.
    `partition_dim` None is the dimension that `partition_type` shards.
    """

    patterns: tuple[str, ...]
    partition_type: str = "column"
    shape: tuple[int | tuple[int, ...], ...] | None = None
    partition_dim: int | None = None
    model_types: tuple[str, ...] = ()
    gather_output: bool = False
    grad_allreduce: bool = False
    location: str = ""

    def applies_to(self, model_type: str | None) -> bool:
        """Return whether the spec applies to models of a type, compared without case; without `model_types`, to all."""
        return not self.model_types or (model_type or "").lower() in [name.lower() for name in self.model_types]

    def matches(self, parameter: str) -> bool:
        """Return whether a pattern matches at the start of a parameter's full name."""
        return any(re.match(pattern, parameter) for pattern in self.patterns)


def read_spec(entry: Mapping[str, Any], location: str) -> Spec:
    """Return the spec of one entry of `layer_specs`. The config's reader has checked the entry."""
    shape = entry.get("shape")
    return Spec(
        patterns=tuple(entry["patterns"]),
        partition_type=str(entry.get("partition_type", "column")).lower(),
        shape=tuple(tuple(size) if isinstance(size, (list, tuple)) else size for size in shape) if shape else None,
        partition_dim=entry.get("partition_dim"),
        model_types=tuple(entry.get("model_types", ())),
        gather_output=entry.get("gather_output", False),
        grad_allreduce=entry.get("grad_allreduce", False),
        location=location,
    )


def fused_parts(spec: Spec, linear: LinearInfo) -> tuple[tuple[int, ...], int]:
    """Return the lengths of the fused parts along the dimension that a spec shards, and their unit, both in features.

    Returns ((), 1) for a spec without a shape. The dimensions of `shape` and `partition_dim` are those of a weight
    [out, in]. For a weight that is stored as [in, out] (GPT-2's Conv1D) they may also be the stored ones: the stored
    order is tried if [out, in] does not fit. Raises SpecError if neither fits.
    """
    stored_transposed = linear.out_dim == 1
    axis = 0 if spec.partition_type == "column" else 1  # of the weight [out, in]
    if spec.shape is None:
        if spec.partition_dim not in (None, axis) and not (stored_transposed and spec.partition_dim == 1 - axis):
            raise SpecError(
                f"partition_dim is {spec.partition_dim}, but a {spec.partition_type} spec shards dimension {axis} of a "
                "weight [out, in]: leave it out"
            )
        return (), 1
    dim = spec.partition_dim if spec.partition_dim is not None else axis
    try:
        return _parts_along(spec, dim, (linear.out_features, linear.in_features), axis)
    except SpecError:
        if not stored_transposed:
            raise
        with suppress(SpecError):
            return _parts_along(spec, dim, (linear.in_features, linear.out_features), 1 - axis)
        raise


def _parts_along(spec: Spec, dim: int, weight: tuple[int, int], axis: int) -> tuple[tuple[int, ...], int]:
    """Return the fused lengths and the unit of a spec. Raises SpecError unless they are along `axis` of the weight."""
    assert spec.shape is not None
    found_axis, lengths, unit = _fused_lengths(spec.shape, dim, weight)
    if found_axis != axis:
        found, needed = ("output", "input") if spec.partition_type == "row" else ("input", "output")
        raise SpecError(
            f"dimension {dim} of its shape {_text(spec.shape)} is the {found}, but a {spec.partition_type} spec shards "
            f"the {needed}: give the parts of the {needed}"
        )
    return lengths, unit


def _fused_lengths(shape: _Shape, dim: int, weight: tuple[int, int]) -> tuple[int, tuple[int, ...], int]:
    """Return, for parts along `dim` of a logical shape: the weight's dimension, the parts' lengths in it, the unit."""
    sizes, entry = _logical_sizes(shape, dim, weight), shape[dim]
    if isinstance(entry, tuple):
        parts = entry
    elif entry == -1:
        parts = (sizes[dim],)
    elif sizes[dim] % entry == 0:
        parts = (sizes[dim] // entry,) * entry
    else:
        raise SpecError(
            f"its shape {_text(shape)} splits {sizes[dim]} into {entry} equal parts, which do not divide it"
        )
    if dim == len(shape) - 1:
        return 1, parts, 1
    repeats, unit = math.prod(sizes[:dim]), math.prod(sizes[dim + 1 : -1])
    return 0, tuple(part * unit for part in parts) * repeats, unit


def _logical_sizes(shape: _Shape, dim: int, weight: tuple[int, int]) -> list[int]:
    """Return the size of every dimension of a logical shape, with each -1 filled in from the weight's shape.

    The entry at `dim` is a number of parts (or -1) or a tuple of their lengths; every other entry is a size or -1.
    """
    elements = math.prod(weight)
    known: list[int | None] = []
    for index, entry in enumerate(shape):
        if index == dim:
            known.append(sum(entry) if isinstance(entry, tuple) else None)
        else:
            assert isinstance(entry, int)
            known.append(None if entry == -1 else entry)
    unknown = [index for index, size in enumerate(known) if size is None]
    product = math.prod(size for size in known if size is not None)
    if len(unknown) == 1 and elements % product == 0:
        known[unknown[0]] = elements // product
    elif len(unknown) > 1 and len(shape) == len(weight):
        for index in unknown:
            known[index] = weight[index]
    elif len(unknown) > 1:
        raise SpecError(f"its shape {_text(shape)} leaves more than one size open: at most one may be -1")
    sizes = [size for size in known if size is not None]
    if len(sizes) != len(shape) or math.prod(sizes) != elements:
        raise SpecError(f"its shape {_text(shape)} does not hold the {elements} elements of a weight {list(weight)}")
    if sizes[-1] != weight[-1]:
        raise SpecError(f"the last size of its shape {_text(shape)} must be the weight's, {weight[-1]}")
    return sizes


def _text(shape: _Shape) -> str:
    return str([list(entry) if isinstance(entry, tuple) else entry for entry in shape])
