"""Which nodes of autograd's graph the forwards of one model made, told by the numbers that torch gives to nodes."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tpinit.runtime.internals.autograd_private import next_node_number

__all__ = ["OwnNodes"]

_KEPT = 4096  # forwards of a thread; nodes of earlier ones count as the model's own
_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)
_DEPTH = 8  # of nested containers


@dataclass(frozen=True, slots=True)
class _Span:
    """The nodes from `begin` up to `end`. `closed`: the graph that they read was made among them too."""

    begin: int
    end: int
    closed: bool


class OwnNodes:
    """The spans of numbers that forwards of one model made, by thread: each thread numbers its own nodes.

    A part of the model that is called by itself begins a lone span, which lasts until the next backward. What that
    backward adds itself is another.
    """

    def __init__(self) -> None:
        self._spans: dict[int, list[_Span]] = {}
        self._lone: dict[int, list[_Span]] = {}
        self._lone_begin: dict[int, int] = {}
        self._forward: tuple[int, bool] | None = None

    def enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Begin the span of a forward. It is closed if no input needs a gradient."""
        self._forward = next_node_number(), _needs_no_gradient(args) and _needs_no_gradient(kwargs)

    def leave(self, _: nn.Module, output: Any) -> Any:
        """End the span of a forward, and return its output."""
        if self._forward is not None:
            begin, closed = self._forward
            self._forward = None
            _add(self._spans, begin, closed)
        return output

    def begin_lone(self) -> None:
        """Begin a span for a part of the model that is called by itself."""
        if torch.is_grad_enabled():
            self._lone_begin.setdefault(threading.get_ident(), next_node_number())

    def end_lone(self) -> None:
        """End the span of the parts that were called by themselves in this thread."""
        begin = self._lone_begin.pop(threading.get_ident(), None)
        if begin is not None:
            _add(self._lone, begin, closed=False)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Count what the context adds to a graph as a closed span. Inside a forward it does nothing."""
        begin = next_node_number()
        yield
        if self._forward is None:
            _add(self._spans, begin, closed=True)

    def find(self, number: int) -> bool | None:
        """Return whether the node of a number is in a closed span; None if it is in no span."""
        for spans in (*self._spans.values(), *self._lone.values()):
            place = bisect_right(spans, number, key=lambda span: span.begin) - 1
            if place >= 0 and number < spans[place].end:
                return spans[place].closed
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnNodes:
        """Return that of a copied model, which has run no forward."""
        memo[id(self)] = twin = OwnNodes()
        return twin


def _add(spans_of: dict[int, list[_Span]], begin: int, closed: bool) -> None:
    """Add the span from `begin` to the present to those of this thread, if it has nodes; its oldest become one."""
    end = next_node_number()
    if end > begin:
        spans = spans_of.setdefault(threading.get_ident(), [])
        spans.append(_Span(begin, end, closed))
        if len(spans) > 2 * _KEPT:
            spans[: _KEPT + 1] = [_Span(0, spans[_KEPT].end, True)]


def _needs_no_gradient(value: object, depth: int = 0) -> bool:
    """Return whether a value, and all in it, is known to need no gradient."""
    if isinstance(value, torch.Tensor):
        return not value.requires_grad
    if isinstance(value, Mapping) and depth < _DEPTH:
        return all(_needs_no_gradient(inner, depth + 1) for inner in value.values())
    if isinstance(value, (list, tuple)) and depth < _DEPTH:
        return all(_needs_no_gradient(inner, depth + 1) for inner in value)
    return isinstance(value, _PLAIN)
