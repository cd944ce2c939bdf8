"""Layer specs: one line of a `partition_config` or a preset, and what its `shape` says of a weight."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tpinit.runtime.planning.analysis.linears import LinearInfo

__all__ = ["Spec", "SpecError", "fused_parts", "read_spec"]


class SpecError(Exception):
    """A spec that can't be meant for the layer it matches; the text says why."""


@dataclass(frozen=True, slots=True)
class Spec:
    """Which layers are cut how. `cut` is column, row or skip; `place` is where it was written, for people.

    A spec is for a parameter where one of its patterns matches at the start of the name, and where it is not
    for other types of models. `dim` None is the dimension that `cut` says.
    """

    patterns: tuple[str, ...]
    cut: str = "column"
    shape: tuple[int | tuple[int, ...], ...] | None = None
    dim: int | None = None
    model_types: tuple[str, ...] = ()
    gather: bool = False
    sums_gradients: bool = False
    place: str = ""

    def is_for(self, model_type: str | None) -> bool:
        """Tell whether a spec is for a type of models: without types of its own it is for all."""
        return not self.model_types or (model_type or "").lower() in [one.lower() for one in self.model_types]

    def matches(self, parameter: str) -> bool:
        """Tell whether a pattern matches at the start of a parameter's full name."""
        return any(re.match(pattern, parameter) for pattern in self.patterns)


def read_spec(read: Mapping[str, Any], place: str) -> Spec:
    """Return the spec of an object of `layer_specs` that the config's reader has checked."""
    shape = read.get("shape")
    return Spec(
        patterns=tuple(read["patterns"]),
        cut=str(read.get("partition_type", "column")).lower(),
        shape=tuple(tuple(one) if isinstance(one, (list, tuple)) else one for one in shape) if shape else None,
        dim=read.get("partition_dim"),
        model_types=tuple(read.get("model_types", ())),
        gather=read.get("gather_output", False),
        sums_gradients=read.get("grad_allreduce", False),
        place=place,
    )


def fused_parts(spec: Spec, matrix: LinearInfo) -> tuple[tuple[int, ...], int]:
    """Return the lengths of what is fused along the dimension that a spec cuts, and the unit that stays whole.

    Nothing (), 1 where the spec has no shape. Dimensions count as in [out, in]; of a weight that is stored
    [in, out] (GPT-2's Conv1D), as stored where they make no sense otherwise. Raises SpecError.
    """
    stored = matrix.out_dim == 1
    wanted = 0 if spec.cut == "column" else 1
    if spec.shape is None:
        if spec.dim is not None and spec.dim != wanted and not (stored and spec.dim == 1 - wanted):
            raise SpecError(
                f"partition_dim is {spec.dim}, and the {spec.cut} cut of a weight [out, in] is along {wanted}: "
                "leave it out"
            )
        return (), 1
    dim = spec.dim if spec.dim is not None else wanted
    try:
        return _along(spec, dim, (matrix.out_features, matrix.in_features), wanted)
    except SpecError:
        if not stored:
            raise
        with suppress(SpecError):
            return _along(spec, dim, (matrix.in_features, matrix.out_features), 1 - wanted)
        raise


def _along(spec: Spec, dim: int, weight: tuple[int, int], wanted: int) -> tuple[tuple[int, ...], int]:
    assert spec.shape is not None
    axis, lengths, unit = _viewed(spec.shape, dim, weight)
    if axis != wanted:
        names = ("output", "input") if spec.cut == "row" else ("input", "output")
        raise SpecError(
            f"its shape {_text(spec.shape)} cuts along dimension {dim}, which is the {names[0]}: "
            f"the {spec.cut} cut is along the {names[1]}"
        )
    return lengths, unit


def _viewed(
    shape: Sequence[int | tuple[int, ...]], dim: int, weight: tuple[int, int]
) -> tuple[int, tuple[int, ...], int]:
    """Return the dimension of a weight that a cut of its logical shape is along, the fused lengths, and the unit."""
    said, numbers = shape[dim], math.prod(weight)
    view: list[int | None] = []
    for place, one in enumerate(shape):
        if place == dim:
            view.append(sum(one) if isinstance(one, tuple) else None)
        else:
            assert isinstance(one, int)
            view.append(None if one == -1 else one)
    known = math.prod(one for one in view if one is not None)
    open_places = [place for place, one in enumerate(view) if one is None]
    if len(open_places) == 1 and numbers % known == 0:
        view[open_places[0]] = numbers // known
    elif len(open_places) > 1 and len(shape) == len(weight):
        for place in open_places:
            view[place] = weight[place]
    elif len(open_places) > 1:
        raise SpecError(f"its shape {_text(shape)} leaves more than one size open")
    sizes = [one for one in view if one is not None]
    if len(sizes) != len(shape) or math.prod(sizes) != numbers:
        raise SpecError(f"its shape {_text(shape)} does not hold the {numbers} numbers of a weight {list(weight)}")
    if sizes[-1] != weight[-1]:
        raise SpecError(f"the last size of its shape {_text(shape)} must be the weight's, {weight[-1]}")
    if isinstance(said, tuple):
        parts = said
    elif said == -1:
        parts = (sizes[dim],)
    elif sizes[dim] % said == 0:
        parts = (sizes[dim] // said,) * said
    else:
        raise SpecError(f"its shape {_text(shape)} cuts {sizes[dim]} into {said} equal parts, which do not divide it")
    if dim == len(shape) - 1:
        return 1, parts, 1
    before, unit = math.prod(sizes[:dim]), math.prod(sizes[dim + 1 : -1])
    return 0, tuple(part * unit for part in parts) * before, unit


def _text(shape: Sequence[int | tuple[int, ...]]) -> str:
    return str([list(one) if isinstance(one, tuple) else one for one in shape])
