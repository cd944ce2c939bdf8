"""Counts what parallel layers do in a first step: which forwards ran, which region functions, which collectives.

Each counted module has a `Place`, which names it. While its forward runs, the place is the current one, and the region
functions and collectives that run are counted there; those of its backward too. `training.first_step` compares the
counts with the plan. After the first step nothing is counted; the places name the collectives in errors from then on.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from tpinit.runtime.groups.issuing import collective

__all__ = ["Place", "Tally", "counted", "current_place", "issue", "place_of", "set_place"]

FORWARD, BACKWARD = "forward", "backward"
_PLACE, _TOKEN_PLACE = "tp_place", "tp_token_place"
_running: list[tuple[Place, str]] = []  # the places whose forward or backward runs now, innermost last


@dataclass(slots=True)
class Tally:
    """The counts of one model, by the names of its places.

    `forwards` counts finished forwards of modules, `applied` region functions by (place, region function), `issued`
    collectives by (place, "forward" or "backward", kind): these while `in_forward` is set, a forward of the model runs.
    `due` counts the collectives of the backward passes that autograd has started, by (place, kind). Once `done`,
    nothing is counted.
    """

    done: bool = False
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
    """A named part of a model, at which a tally counts until it is done."""

    tally: Tally
    name: str

    def runs(self, direction: str = FORWARD) -> _Running:
        """Return a context for the time of which this is the current place."""
        return _Running(self, direction)

    def apply(self, region: Any) -> None:
        """Count a region function, or a reader of the result of one that several layers share."""
        if self.tally.in_forward:
            self.tally.applied[self.name, region] += 1

    def watch(self, output: torch.Tensor, kind: str) -> None:
        """Count a collective as due as soon as autograd runs the operation that made `output`."""
        if output.grad_fn is None or self.tally.done:
            return
        due, key = self.tally.due, (self.name, kind)

        def started(_: Any) -> None:
            due[key] += 1

        output.grad_fn.register_prehook(started)

    def __deepcopy__(self, _: dict[int, Any]) -> Place:
        """Return a place of the same name where nothing is counted: a copied module has layers that were."""
        return Place(Tally(done=True), self.name)


class _Running:
    """The time in which the forward or the backward of a place runs. A class: a generator takes longer to enter."""

    __slots__ = ("_entry",)

    def __init__(self, place: Place, direction: str) -> None:
        self._entry = place, direction

    def __enter__(self) -> None:
        _running.append(self._entry)

    def __exit__(self, *_: object) -> None:
        _running.pop()


def set_place(module: nn.Module, place: Place, *, of_tokens: bool = False) -> None:
    """Let a module count at a place; `of_tokens`: its hooks that split and gather tokens."""
    module.__dict__[_TOKEN_PLACE if of_tokens else _PLACE] = place


def place_of(module: Any, *, of_tokens: bool = False) -> Place | None:
    """Return the place of a module; None for one that was not planned, and in code that torch.compile traces."""
    return None if torch.compiler.is_compiling() else module.__dict__.get(_TOKEN_PLACE if of_tokens else _PLACE)


def current_place() -> Place | None:
    """Return the place whose forward or backward runs now; None if none does."""
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
    """Issue a collective, and count it at the place whose forward or backward runs now, which names it in errors."""
    if torch.compiler.is_compiling() or not _running:
        return collective(kind, "a layer", *args, **kwargs)
    place, direction = _running[-1]
    if not place.tally.done and (direction == BACKWARD or place.tally.in_forward):
        place.tally.issued[place.name, direction, kind] += 1
    return collective(kind, f"{place.name} {direction}", *args, **kwargs)
