"""Counts what parallel layers do in a first step: which forwards ran, which region functions, which collectives.

Each counted module has a `Place`, which names it. While its forward runs, the place is the current one, and the region
functions and collectives that run are counted there; those of its backward too. After the first step the places are
removed, and nothing is counted. `training.first_step` compares the counts with the plan.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

__all__ = ["Place", "Tally", "counted", "current_place", "issue", "place_of", "remove_places", "set_place"]

FORWARD, BACKWARD = "forward", "backward"
_PLACE, _TOKEN_PLACE = "tp_place", "tp_token_place"
_running: list[tuple[Place, str]] = []  # the places whose forward or backward runs now, innermost last


@dataclass(slots=True)
class Tally:
    """The counts of one model, by the names of its places.

    `forwards` counts finished forwards of modules, `applied` region functions by (place, region function), `issued`
    collectives by (place, "forward" or "backward", kind): these while `in_forward` is set, a forward of the model runs.
    `due` counts the collectives of the backward passes that autograd has started, by (place, kind).
    """

    in_forward: bool = False
    forwards: Counter[str] = field(default_factory=Counter)
    applied: Counter[tuple[str, Any]] = field(default_factory=Counter)
    issued: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    due: Counter[tuple[str, str]] = field(default_factory=Counter)

    def clear_forward(self) -> None:
        """Forget the counts of the last forward of the model; those of backward passes stay."""
        self.forwards.clear()
        self.applied.clear()
        for key in [key for key in self.issued if key[1] == FORWARD]:
            del self.issued[key]


@dataclass(frozen=True, slots=True)
class Place:
    """A named part of a model, at which a tally counts."""

    tally: Tally
    name: str

    @contextmanager
    def runs(self, direction: str = FORWARD) -> Iterator[None]:
        """Make this the current place for the time of the context."""
        _running.append((self, direction))
        try:
            yield
        finally:
            _running.pop()

    def apply(self, region: Any) -> None:
        """Count a region function, or a reader of the result of one that several layers share."""
        if self.tally.in_forward:
            self.tally.applied[self.name, region] += 1

    def watch(self, output: torch.Tensor, kind: str) -> None:
        """Count a collective as due as soon as autograd runs the operation that made `output`."""
        if output.grad_fn is None:
            return
        due, key = self.tally.due, (self.name, kind)

        def started(_: Any) -> None:
            due[key] += 1

        output.grad_fn.register_prehook(started)

    def __deepcopy__(self, _: dict[int, Any]) -> None:
        """Return None: the forwards of a copied module are not counted."""


def set_place(module: nn.Module, place: Place, *, of_tokens: bool = False) -> None:
    """Let a module count at a place; `of_tokens`: its hooks that split and gather tokens."""
    module.__dict__[_TOKEN_PLACE if of_tokens else _PLACE] = place


def remove_places(model: nn.Module) -> None:
    """Stop counting, for all modules of a model."""
    for module in model.modules():
        module.__dict__.pop(_PLACE, None)
        module.__dict__.pop(_TOKEN_PLACE, None)


def place_of(module: Any, *, of_tokens: bool = False) -> Place | None:
    """Return the place of a module; None outside of a first step, and in code that torch.compile traces."""
    return None if torch.compiler.is_compiling() else module.__dict__.get(_TOKEN_PLACE if of_tokens else _PLACE)


def current_place() -> Place | None:
    """Return the place whose forward runs now; None if none is counted."""
    return _running[-1][0] if not torch.compiler.is_compiling() and _running else None


def counted(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Count the forward of a class of parallel layers, and what it does."""

    @functools.wraps(forward)
    def run(layer: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        place = place_of(layer)
        if place is None:
            return forward(layer, *args, **kwargs)
        with place.runs():
            output = forward(layer, *args, **kwargs)
        if place.tally.in_forward:
            place.tally.forwards[place.name] += 1
        return output

    return run


def issue(kind: str, *args: Any, **kwargs: Any) -> Any:
    """Call the function `kind` of torch.distributed, and count it at the place whose forward or backward runs now."""
    if not torch.compiler.is_compiling() and _running:
        place, direction = _running[-1]
        if direction == BACKWARD or place.tally.in_forward:
            place.tally.issued[place.name, direction, kind] += 1
    return getattr(dist, kind)(*args, **kwargs)
