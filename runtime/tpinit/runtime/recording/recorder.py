"""Records what runs inside of it as a graph: each aten operator, each collective, each number that the host reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from tpinit.runtime.internals.record_private import SchemaArgument, schema_arguments
from tpinit.runtime.internals.torch_private import PlainDispatchMode, tree_leaves
from tpinit.runtime.recording.collectives import is_collective, is_wait, read_collective
from tpinit.runtime.recording.content import content, living_storages, random_state, tensors_of
from tpinit.runtime.recording.errors import RecordError
from tpinit.runtime.recording.host_reads import HostReads
from tpinit.runtime.recording.known_tensors import KnownTensors, TensorView, shape_of, storage_number
from tpinit.runtime.recording.overlap import writes_collide
from tpinit.runtime.recording.places import Places
from tpinit.step.graph import Arg, Graph, Leaf, Op, OpPlace, Ref, Value

__all__ = ["READ", "LeafNames", "Recorder"]

READ = "tpinit.read"
"""The operation by which the host reads a tensor: its "tolist", "numpy", "dlpack", or a "shape" that data decide."""

LeafNames = Sequence[tuple[str, str, torch.Tensor]]
"""The (kind, name, tensor) of the leaves that have a name: parameters, buffers, the batch, states of the optimizer."""

_SAME = ("aten.detach.default", "aten.detach_.default", "aten.alias.default")
_LIFTS = ("aten.lift_fresh.default", "aten.lift.default")  # of tensors that torch.tensor made from the host's data
_ITEM = "aten._local_scalar_dense.default"
# Operators that write to arguments, in training, which their schemas do not mark.
_UNMARKED = {
    f"aten.{name}_batch_norm.default": ("running_mean", "running_var") for name in ("native", "cudnn", "miopen")
}
_NOT_OF_TENSORS = ("profiler",)  # namespaces of operators that compute nothing
_PLAIN = (type(None), bool, int, float, str)
_AS_TEXT = (torch.dtype, torch.device, torch.layout, torch.memory_format, complex)


class Recorder(PlainDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    """A context that records the step inside of it. `phase` is "forward", "backward" or "step", and set by its user.

    `leaves` are the named tensors. A tensor without a name that lived when the recorder was made, or that the host
    makes from its own data, is a constant. `paths` are the paths of the modules by id (`places.module_paths`). What is
    recorded is kept alive until the recorder is dropped. Raises RecordError, at the operation, for what can't be
    recorded: a tensor of which it was not seen where it comes from, among others.
    """

    def __init__(self, leaves: LeafNames = (), paths: Mapping[int, str] | None = None) -> None:
        super().__init__()
        self.phase = "forward"
        self._known = KnownTensors(self._emit)
        self._places = Places(paths or {})
        self._place = OpPlace("", "", self.phase)
        self._values: list[Value] = []
        self._ops: list[Op] = []
        self._leaves: list[Leaf] = []
        self._premises: list[tuple[int, str]] = []
        self._schemas: dict[Any, tuple[SchemaArgument, ...]] = {}
        self._of_host = living_storages()
        self._reads = HostReads(self._read, self._made)
        self._paused = False
        for kind, name, tensor in leaves:
            if self._known.find(tensor) is None:  # a second name of one tensor is the tensor of the first
                self._add_leaf(tensor, kind, name)

    def value_of(self, tensor: torch.Tensor) -> int:
        """Return the present value of a tensor, an index of the graph's values."""
        return self._known.read(self._view_of(tensor))

    def graph(self, results: Mapping[str, int], rank: int = 0, ranks: int = 1) -> Graph:
        """Return what was recorded until now."""
        values, ops, leaves = tuple(self._values), tuple(self._ops), tuple(self._leaves)
        return Graph(rank, ranks, values, ops, leaves, dict(results), tuple(self._premises))

    def __enter__(self) -> Recorder:
        """Begin to record, or go on."""
        super().__enter__()  # type: ignore[no-untyped-call]  # torch leaves its modes untyped
        self._reads.__enter__()  # type: ignore[no-untyped-call]  # the same
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record no more."""
        self._reads.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]  # the same
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]  # the same

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator, and record it."""
        if any(kind not in (torch.Tensor, torch.nn.Parameter) for kind in types):
            return NotImplemented  # a tensor of another class calls operators on the tensors inside of it
        kwargs = kwargs or {}
        if self._paused or func.namespace in _NOT_OF_TENSORS or is_wait(func):
            return func(*args, **kwargs)
        self._place = self._places.here(self.phase)
        if is_collective(func):
            return self._collective(func, args, kwargs)
        given = self._given(func, args, kwargs)
        name = str(func)
        if name in _LIFTS and self._known.find(given["self"]) is None:
            self._add_leaf(given["self"], "constant", "")
        if name in _SAME or name in _LIFTS:
            self.value_of(given["self"])
            return func(*args, **kwargs)
        recorded = tuple(self._arg(one, name) for one in given.values())
        if torch.Tag.inplace_view in func.tags:
            return self._reshape(func, args, kwargs, recorded, given)
        return self._operator(func, args, kwargs, recorded, given)

    def _given(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return all arguments of a call by name, in the order of the schema, defaults included."""
        if func not in self._schemas:
            self._schemas[func] = schema_arguments(func)
        given = {one.name: one.default for one in self._schemas[func]}
        return given | dict(zip(given, args, strict=False)) | dict(kwargs)

    def _operator(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        recorded: tuple[Arg, ...],
        given: Mapping[str, Any],
    ) -> Any:
        """Run an operator whose arguments are noted, and note what it returned, wrote and told the host."""
        name, names = str(func), self._written(func, given)
        written = tensors_of([given[one] for one in names])
        if len(written) > 1 and writes_collide(given, names):
            raise RecordError(
                f"{name} in {self._where()} writes to tensors that share memory, and what they hold in the end "
                "depends on the order in which it does so: give it tensors that share none"
            )
        empty = [not one.numel() for one in written]
        before = random_state(func, given)
        result = func(*args, **kwargs)
        if before is not None and before != random_state(func, given):
            recorded += (f"rng:{before}",)
        inputs, returned = tensors_of(list(given.values())), tensors_of(result)
        if not inputs and not returned:
            return result  # of dtypes or sizes alone
        if any(self._known.find(one) is None and not was_empty for one, was_empty in zip(written, empty, strict=True)):
            raise self._other_memory(func)
        changed = [self._known.find(one) for one in written]
        fresh = [one for one in returned if not changed or self._known.find(one) not in changed]
        if any(map(self._known.has_storage, fresh)):
            self._add_views(name, recorded, inputs, fresh, bool(written))
            return result
        made = [self._add(shape_of(one)) for one in (*fresh, *written)]
        numbers = [one for one in tree_leaves(result) if isinstance(one, (bool, int, float, complex))]
        if name != _ITEM:
            made += [self._add(Value((), type(one).__name__)) for one in numbers]
        self._ops.append(Op(name, recorded, tuple(made), self._place))
        for number in numbers:
            self._premises.append((self.value_of(inputs[0]) if name == _ITEM else made[-1], repr(number)))
        for tensor, value in zip(fresh, made, strict=False):
            self._known.add_root(tensor, value)
        for tensor, value in zip(written, made[len(fresh) :], strict=False):
            self._note_write(tensor, value)
        if _data_decide_shape(func, given):
            for tensor in fresh:
                self._read(tensor, "shape")
        return result

    def _note_write(self, tensor: torch.Tensor, value: int) -> None:
        """Note the value that was written to a tensor, which is new or was empty if it is not known."""
        if self._known.find(tensor) is None:
            self._known.add_root(tensor, value)
        else:
            self._known.write(tensor, value)

    def _written(self, func: Any, given: Mapping[str, Any]) -> list[str]:
        """Return the names of the arguments that an operator writes to."""
        unmarked = _UNMARKED.get(str(func), ()) if given.get("training") else ()
        return [one.name for one in self._schemas[func] if one.is_written or one.name in unmarked]

    def _add_views(
        self, name: str, args: tuple[Arg, ...], inputs: list[torch.Tensor], fresh: list[torch.Tensor], writes: bool
    ) -> None:
        """Note that an operator returned views of its first argument, and did nothing else."""
        first = storage_number(inputs[0]) if inputs and isinstance(args[0], Ref) else None
        if writes or any(storage_number(one) != first for one in fresh):
            raise RecordError(
                f"{name} in {self._where()} returns views of another tensor than its first, or beside new ones: "
                "which memory its results share can't be told; call an operator that returns new tensors"
            )
        self._known.add_views(self._view_of(inputs[0]), name, args[1:], fresh)

    def _reshape(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        recorded: tuple[Arg, ...],
        given: Mapping[str, Any],
    ) -> Any:
        """Run an operator that gives a tensor another shape, or other memory, in place: it is another view then."""
        tensor = given["self"]
        parent, size = self._view_of(tensor), tensor.untyped_storage().nbytes()
        storage = storage_number(tensor)
        result = func(*args, **kwargs)
        if self._known.find(tensor) is not None:
            return result
        if storage_number(tensor) != storage or tensor.untyped_storage().nbytes() != size:
            raise self._other_memory(func)
        self._known.add_views(parent, str(func), recorded[1:], [tensor])
        return result

    def _collective(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        call = read_collective(func, args, kwargs)
        sent = tuple(Ref(self.value_of(one)) for one in call.sent)
        for one in call.filled:
            self.value_of(one)
        result = func(*args, **kwargs)
        received = call.received(result)
        values = tuple(self._add(shape_of(one)) for one in received)
        recorded: tuple[Arg, ...] = (sent, call.reduction, call.ranks, *call.extra)
        self._ops.append(Op(f"collective.{call.kind}", recorded, values, self._place))
        for tensor, value in zip(received, values, strict=True):
            self._note_write(tensor, value)
        return result

    def _arg(self, given: Any, name: str) -> Arg:
        if isinstance(given, torch.Tensor):
            return Ref(self.value_of(given))
        if isinstance(given, (list, tuple)):
            return tuple(self._arg(one, name) for one in given)
        if isinstance(given, _PLAIN):
            return given
        if isinstance(given, _AS_TEXT):
            return str(given)
        if isinstance(given, torch.Generator):
            return "generator"
        raise RecordError(
            f"{name} in {self._where()} has an argument of type {type(given).__qualname__}, which a graph can't have: "
            "call an operator of tensors, numbers and dtypes"
        )

    def _view_of(self, tensor: torch.Tensor) -> TensorView:
        view = self._known.find(tensor)
        if view is not None:
            return view
        if storage_number(tensor) not in self._of_host and not self._known.has_storage(tensor):
            raise RecordError(
                f"a tensor of shape {list(tensor.shape)} is read in {self._where()}, and no operation was seen that "
                "made it: code that torch's dispatcher does not see did (a compiled or C++ function); run it eagerly"
            )
        return self._add_leaf(tensor, "constant", "")

    def _add_leaf(self, tensor: torch.Tensor, kind: str, name: str) -> TensorView:
        self._known.check_memory(tensor)
        value = self._add(shape_of(tensor))
        numbers: tuple[str, ...] = ()
        if kind == "constant":
            with self._unseen():
                name, numbers = content(tensor)
        self._leaves.append(Leaf(value, kind, name, numbers))
        return self._known.add_root(tensor, value)

    def _read(self, tensor: torch.Tensor, kind: str) -> None:
        """Note that the host reads a tensor: by that it may branch."""
        if self._paused:
            return
        self._place = self._places.here(self.phase)
        value = self.value_of(tensor)
        with self._unseen():
            read = {"tolist": lambda: repr(tensor.tolist()), "shape": lambda: repr(list(tensor.shape))}
            text = read.get(kind, lambda: content(tensor)[0])()
        self._ops.append(Op(READ, (Ref(value), kind), (), self._place))
        self._premises.append((value, text))

    def _made(self, tensor: torch.Tensor) -> None:
        """Note a tensor that the host made from its own data."""
        if not self._paused:
            self._of_host[storage_number(tensor)] = tensor.untyped_storage()

    @contextmanager
    def _unseen(self) -> Iterator[None]:
        """Do not record what this recorder itself computes."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _other_memory(self, func: Any) -> RecordError:
        return RecordError(
            f"{func} in {self._where()} gives a tensor other memory in place, and what that holds can't be told: "
            "make a new tensor instead"
        )

    def _where(self) -> str:
        place = self._place
        return f"{place.line or 'the step'} ({place.module or 'no module'}, {place.phase})"

    def _add(self, value: Value) -> int:
        self._values.append(value)
        return len(self._values) - 1

    def _emit(self, name: str, args: tuple[Arg, ...], outputs: Sequence[Value]) -> tuple[int, ...]:
        values = tuple(map(self._add, outputs))
        self._ops.append(Op(name, args, values, self._place))
        return values


def _data_decide_shape(func: Any, given: Mapping[str, Any]) -> bool:
    """Return whether the shape of what an operator returned depends on elements of its arguments."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    indices = tensors_of(given.get("indices"))
    return not indices or any(one.dtype in (torch.bool, torch.uint8) for one in indices)
