"""Which value each tensor holds: storages, the views of them, and what a write through one view does to the others.

A tensor is known by its storage, offset, sizes, strides, dtype and sign bits, so it doesn't matter which object shows
it. The first tensor that is seen of a storage is a root, and a view knows the operation that made it from a root or
from another view. A write makes a new value of the root; what its other views hold is then made again by their
operations, when they are next read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tpinit.runtime.internals.record_private import storage_identity
from tpinit.runtime.recording.errors import RecordError
from tpinit.runtime.recording.overlap import overlap, span_of
from tpinit.step.graph import Arg, Ref, Value

__all__ = ["WRITE_VIEW", "KnownTensors", "TensorView", "shape_of", "storage_number"]

WRITE_VIEW = "tpinit.write_view"
"""The operation that makes a root again of which a view was written: (old root, the view's new value, its chain)."""

Emit = Callable[[str, tuple[Arg, ...], Sequence[Value]], tuple[int, ...]]
"""Records an operation of this name and arguments, with outputs of these shapes; returns their indices."""


@dataclass(slots=True, eq=False)
class _Step:
    """The operation that made views: its name, its arguments behind the viewed tensor, and all views that it made."""

    name: str
    rest: tuple[Arg, ...]
    outputs: tuple[TensorView, ...] = ()


@dataclass(slots=True, eq=False)
class TensorView:
    """A root, or a view of one that `step` made from `parent`. `value` is what it held at `version` of its root."""

    shape: Value
    root: TensorView | None
    parent: TensorView | None
    step: _Step | None
    value: int
    version: int = 0
    writes: int = 0  # of a root: how often it was written
    span: tuple[int, int] = (0, 0)  # of a root: its first byte in the storage, and the one behind its last

    @property
    def of_root(self) -> TensorView:
        """The root of this view; itself if it is one."""
        return self if self.root is None else self.root

    def chain(self) -> tuple[Arg, ...]:
        """Return the operations that make this view from its root, each (name, arguments behind the viewed tensor...).

        The name of one with several outputs ends with the index of the output: "aten.split.Tensor[1]".
        """
        if self.parent is None or self.step is None:
            return ()
        several = len(self.step.outputs) > 1
        name = self.step.name + (f"[{self.step.outputs.index(self)}]" if several else "")
        return (*self.parent.chain(), (name, *self.step.rest))


@dataclass(slots=True)
class _Storage:
    """A storage, kept alive so that no other gets its number, and its roots."""

    storage: torch.UntypedStorage
    roots: list[TensorView] = field(default_factory=list)


class KnownTensors:
    """The values of all tensors that a recording has seen. `emit` records an operation."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._storages: dict[int, _Storage] = {}
        self._views: dict[tuple[Any, ...], TensorView] = {}

    def find(self, tensor: torch.Tensor) -> TensorView | None:
        """Return what is known of a tensor; None if it was never seen. Raises RecordError if it is not strided."""
        return self._views.get(_key(tensor))

    def has_storage(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor of the same storage was seen."""
        return storage_number(tensor) in self._storages

    def add_root(self, tensor: torch.Tensor, value: int) -> TensorView:
        """Note a tensor that is no view of one that was seen, and its value.

        Raises RecordError if it overlaps a root that was written: what it holds can't be told.
        """
        root = TensorView(shape_of(tensor), None, None, None, value, span=span_of(tensor))
        held = self._storages.setdefault(storage_number(tensor), _Storage(tensor.untyped_storage()))
        for other in held.roots:
            if other.writes and overlap(other.span, root.span):
                raise _several(tensor)
        held.roots.append(root)
        self._views[_key(tensor)] = root
        return root

    def check_memory(self, tensor: torch.Tensor) -> None:
        """Raise RecordError if a tensor shares memory with a known one of another storage, as an array of numpy may."""
        own, number = tensor.untyped_storage(), storage_number(tensor)
        bytes_of = own.data_ptr(), own.data_ptr() + own.nbytes()
        for other, held in self._storages.items():
            start = held.storage.data_ptr()
            if other != number and overlap(bytes_of, (start, start + held.storage.nbytes())):
                raise _several(tensor)

    def add_views(self, parent: TensorView, name: str, rest: tuple[Arg, ...], made: Sequence[torch.Tensor]) -> None:
        """Record an operation that made views of `parent`: `rest` are its arguments behind that tensor."""
        step = _Step(name, rest)
        root = parent.of_root
        values = self._emit(name, (Ref(self.read(parent)), *rest), tuple(map(shape_of, made)))
        outputs = []
        for tensor, value in zip(made, values, strict=True):
            key = _key(tensor)
            view = self._views.get(key)
            if view is None or view.of_root is not root:
                view = self._views[key] = TensorView(shape_of(tensor), root, parent, step, value)
            view.value, view.version = value, root.writes
            outputs.append(view)
        step.outputs = tuple(outputs)

    def read(self, view: TensorView) -> int:
        """Return the present value of a view, and record the operations that make it again if its root was written."""
        root = view.of_root
        if view.version == root.writes or view.parent is None or view.step is None:
            return view.value
        args = (Ref(self.read(view.parent)), *view.step.rest)
        values = self._emit(view.step.name, args, tuple(one.shape for one in view.step.outputs))
        for one, value in zip(view.step.outputs, values, strict=True):
            one.value, one.version = value, root.writes
        return view.value

    def write(self, tensor: torch.Tensor, value: int) -> None:
        """Note that an operation has written to a known tensor, which holds `value` now.

        Raises RecordError if a root that is no view of the same overlaps it.
        """
        view = self._views[_key(tensor)]
        root = view.of_root
        held = self._storages[storage_number(tensor)]
        if any(other is not root and overlap(other.span, root.span) for other in held.roots):
            raise _several(tensor)
        if view is not root:
            args = (Ref(self.read(root)), Ref(value), view.chain())
            (root.value,) = self._emit(WRITE_VIEW, args, (root.shape,))
        root.writes += 1
        view.value = value
        root.version = view.version = root.writes


def shape_of(tensor: torch.Tensor) -> Value:
    """Return the shape and dtype of a tensor."""
    return Value(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _several(tensor: torch.Tensor) -> RecordError:
    return RecordError(
        f"a tensor of shape {list(tensor.shape)} shares memory with another, and how the two overlap was not seen: one "
        "of them was made before the recording began, or from an array; let it be a copy (clone)"
    )


def storage_number(tensor: torch.Tensor) -> int:
    """Return a number that is equal for two tensors of one storage. Raises RecordError for one that is not dense."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise RecordError(
            f"a tensor of shape {list(tensor.shape)} has the layout {tensor.layout}, and only dense ones are recorded: "
            "use dense gradients and tensors (sparse=False)"
        )
    return storage_identity(tensor.untyped_storage())


def _key(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (
        storage_number(tensor),
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
        tensor.is_conj(),
        tensor.is_neg(),
    )
