"""Traces the data flow between the linear layers of a model in one fake forward.

Every linear layer and every expert module returns random values of the right shape instead of computing. So the trace
reads no weight (the model may be on the meta device), costs no product with one, and does not depend on their values. A
dispatch mode attaches names to the storage of every tensor: the linears that the tensor depends on with no other
linear in between, the parameters, and whether it went through a dropout.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn
from tpinit.runtime.internals.torch_private import storage_key, tree_leaves, tree_map_only
from tpinit.runtime.planning.analysis.dropout_off import DropoutDisabled, without_dropout
from tpinit.runtime.planning.analysis.fake_forward import (
    ForwardContext,
    Replacement,
    forward_context,
    run_fake_forward,
)
from tpinit.runtime.planning.analysis.gates import with_open_gates
from tpinit.runtime.planning.analysis.kept_state import KeptState, ValueReads, running_module
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.analysis.no_trace import no_trace
from tpinit.runtime.planning.analysis.off_meta import activation_device

__all__ = ["Trace", "trace_forward"]


@dataclass(slots=True)
class Trace:
    """The data flow of one forward. Linear layers and expert modules are given by name.

    `sources[m]`: those whose outputs reach the input of linear m, with no other linear in between. The fields
    `reach_...` hold those whose outputs reach something before the next linear: `reach_attention` a product of two
    activations, `reach_dropout` a dropout (a trace in evaluation mode shows none), `reach_parameter[p]` an operation
    with parameter p, `reach_output` the output of the model.

    `nondeterministic`: an operation drew random numbers that no constant could replace (the rotations of hashed
    attention), so two runs differ.
    `inputs[m]`, `outputs[m]` and `expert_outputs[m]`: the tensors of each call, in order, [..., features].
    `parameter_readers[p]`: the linears and expert modules whose inputs depend on parameter p with no other linear in
    between, and "" if the output of the model does.
    `reader_groups`: for every tensor that is an input, the modules that read it, once for each call.
    `hooked[m]`: for each module whose tensors were watched, the linears whose outputs reach its inputs or outputs.
    `weight_reads[p]`: the class whose forward reads the values of p, the weight of a linear, an embedding or an expert
    module, without calling that module. `embedding_calls`: the weights of the embeddings that were called.
    `kept[m]`: why linear m can't be column-parallel: the forward keeps or reads something that its output reaches.
    `value_readers`: the modules, none of torch's or transformers' own, whose forwards read values in Python.
    `context`: what another fake forward of the same model needs.
    """

    context: ForwardContext
    sources: dict[str, frozenset[str]] = field(default_factory=dict)
    reach_attention: set[str] = field(default_factory=set)
    reach_dropout: set[str] = field(default_factory=set)
    reach_parameter: dict[str, set[str]] = field(default_factory=dict)
    parameter_readers: dict[str, set[str]] = field(default_factory=dict)
    reach_output: frozenset[str] = frozenset()
    nondeterministic: bool = False
    inputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    outputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    expert_outputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    reader_groups: list[list[str]] = field(default_factory=list)
    hooked: dict[str, frozenset[str]] = field(default_factory=dict)
    weight_reads: dict[str, str] = field(default_factory=dict)
    embedding_calls: set[str] = field(default_factory=set)
    kept: dict[str, str] = field(default_factory=dict)
    value_readers: set[str] = field(default_factory=set)

    def add_labelled(self, labelled: Trace) -> None:
        """Add what a forward with labels shows: the flow of the loss, and the weights that only it reads.

        The layers that only it calls count as read: no dry run would check them.
        """
        for name in self.sources.keys() & labelled.sources.keys():
            self.sources[name] |= labelled.sources[name]
        self.reach_attention |= labelled.reach_attention
        self.reach_dropout |= labelled.reach_dropout
        self.reach_output |= labelled.reach_output
        for name, reaching in labelled.reach_parameter.items():
            self.reach_parameter.setdefault(name, set()).update(reaching)
        for name, readers in labelled.parameter_readers.items():
            self.parameter_readers.setdefault(name, set()).update(readers)
        for name, reaching_hook in labelled.hooked.items():
            self.hooked[name] = self.hooked.get(name, frozenset()) | reaching_hook
        for name in labelled.sources.keys() - self.sources.keys():
            self.weight_reads[f"{name}.weight"] = "the loss, which only a forward with labels computes"
        self.weight_reads |= labelled.weight_reads
        self.embedding_calls |= labelled.embedding_calls
        self.kept |= labelled.kept
        self.value_readers |= labelled.value_readers


def trace_forward(model: nn.Module, inputs: Mapping[str, Any], context: ForwardContext | None = None) -> Trace:
    """Return the trace of `model(**inputs)` in the mode of `context`: evaluation mode without one. Changes nothing.

    Dropout drops nothing in the run. Raises whatever the model's forward raises.
    """
    context = context or forward_context(model)
    with no_trace(model) if context.watches_state else nullcontext():  # each run of a forward that counts is its first
        return _trace_forward(model, inputs, context)


def _trace_forward(model: nn.Module, inputs: Mapping[str, Any], context: ForwardContext) -> Trace:
    trace = Trace(context)
    tracker = _NameTracker(model, trace, context)
    generator = torch.Generator().manual_seed(0)
    # The readers of each input tensor by its id. The tensor is kept, so that its id is not used again.
    readers: dict[int, tuple[torch.Tensor, list[str]]] = {}

    def add_reader(name: str, features: torch.Tensor) -> None:
        if id(features) not in readers:
            readers[id(features)] = features, []
            trace.reader_groups.append(readers[id(features)][1])
        readers[id(features)][1].append(name)
        add_parameter_readers(name, [features])

    def add_parameter_readers(name: str, tensors: Iterable[torch.Tensor]) -> None:
        for parameter in {one for tensor in tensors for one in tracker.parameters_of(tensor)}:
            trace.parameter_readers.setdefault(parameter, set()).add(name)

    def linear_stub(linear: LinearInfo, features: torch.Tensor) -> torch.Tensor:
        add_reader(linear.name, features)
        trace.sources[linear.name] = trace.sources.get(linear.name, frozenset()) | tracker.linears_of(features)
        with tracker.paused():
            output = _random((*features.shape[:-1], linear.out_features), features, generator, context.watches_state)
            trace.inputs.setdefault(linear.name, []).append(features.detach().clone())
            trace.outputs.setdefault(linear.name, []).append(output)
            return tracker.set_name(output.clone(), linear.name)

    def experts_stub(name: str, features: torch.Tensor) -> torch.Tensor:
        add_reader(name, features)
        with tracker.paused():
            output = _random(tuple(features.shape), features, generator, context.watches_state)
            trace.expert_outputs.setdefault(name, []).append(output)
            return tracker.set_name(output.clone(), name)

    with tracker, tracker.value_reads(), _watched(model, context.watched, trace, tracker):
        result = run_fake_forward(model, inputs, linear_stub, experts_stub, tracker.copy_names, context, traced=True)
    tracker.keep_substitutes(model)
    add_parameter_readers("", _tensors(result))
    trace.reach_output = frozenset().union(*(tracker.linears_of(output) for output in _tensors(result)))
    if tracker.kept is not None:
        del result
        readers.clear()
        trace.kept = tracker.kept.reasons()
        trace.value_readers = {name for name, module in model.named_modules() if id(module) in tracker.kept.readers}
    return trace


def _tensors(value: Any) -> list[torch.Tensor]:
    """Return the tensors in the arguments or the output of a module."""
    values = value.values() if isinstance(value, Mapping) else tree_leaves(value)
    return [leaf for item in values for leaf in tree_leaves(item) if isinstance(leaf, torch.Tensor)]


@contextmanager
def _watched(model: nn.Module, names: Collection[str], trace: Trace, tracker: _NameTracker) -> Iterator[None]:
    """Record in `trace.hooked` which linears reach the inputs and outputs of the named modules."""

    def watch(name: str) -> Any:
        def record(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            found = [tracker.linears_of(tensor) for value in (args, kwargs, output) for tensor in _tensors(value)]
            trace.hooked[name] = trace.hooked.get(name, frozenset()).union(*found)

        return model.get_submodule(name).register_forward_hook(record, with_kwargs=True)

    handles = [watch(name) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _random(shape: tuple[int, ...], like: torch.Tensor, generator: torch.Generator, wide: bool) -> torch.Tensor:
    """Return normal random values; their dtype and device are those of `like`, float32 if it holds integers.

    `wide`: every second row is larger, because code that is not known may do something else with large values.
    """
    dtype = like.dtype if like.is_floating_point() else torch.float32
    values = torch.randn(shape, generator=generator)
    if wide:
        values.view(-1, shape[-1])[1::2] *= _LARGE
    return values.to(like.device, dtype)


_LARGE = 8.0  # times the standard deviation: exp of it is still small in fp32
_NO_NAMES: frozenset[str] = frozenset()
_PARAMETER = "parameter:"  # before the name of a parameter
_DROPOUT = "dropout:"  # a mark: the tensor depends on a dropout
_WEIGHT = "weight:"  # before the name of a weight that only the callbacks stand for; no result gets this mark


class _NameTracker(DropoutDisabled):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    """A dispatch mode that gives each result of an operation the names of its arguments.

    Names belong to storages, so a view has the names of its base.
    """

    def __init__(self, model: nn.Module, trace: Trace, context: ForwardContext) -> None:
        super().__init__()
        self._paused = False
        self._trace = trace
        self._names: dict[int, frozenset[str]] = {}
        self._storages: list[Any] = []  # keeps every storage alive, so that no address is used again
        of_linears = {id(weight) for linear in context.linears.values() for weight in linear.module.parameters()}
        replaced = [*context.embeddings, *context.experts.values()]
        of_others = {id(weight) for module in replaced for weight in module.parameters()}
        self._substitutes: dict[str, torch.Tensor] = {}
        self.kept = KeptState() if context.watches_state else None
        for name, parameter in model.named_parameters():
            if id(parameter) in of_linears:
                self._set(parameter, frozenset({_WEIGHT + name}))
            elif id(parameter) in of_others:
                self._set(parameter, frozenset({_PARAMETER + name, _WEIGHT + name}))
            else:
                self._set(parameter, frozenset({_PARAMETER + name}))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let operations run without tracking for the time of the context."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def value_reads(self) -> AbstractContextManager[object]:
        """Return a context that records which values the forward takes out of torch, if what it keeps is recorded."""
        kept = self.kept
        return nullcontext() if kept is None else ValueReads(lambda tensor: kept.add_read(self.linears_of(tensor)))

    def copy_names(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Give `target` the names of `source`."""
        self._set(target, self._get(source))
        if self.kept is not None:
            self.kept.add_existing(target)

    def set_name(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """Make `name` the only name of `tensor`, and return the tensor."""
        self._set(tensor, frozenset({name}))
        if self.kept is not None:
            self.kept.add_created([tensor])
            self.kept.add("", (), [tensor], frozenset({name}))
        return tensor

    def linears_of(self, tensor: torch.Tensor) -> frozenset[str]:
        """Return the names of the linears and expert modules that `tensor` depends on."""
        return _without_marks(self._get(tensor))

    def parameters_of(self, tensor: torch.Tensor) -> list[str]:
        """Return the names of the parameters that `tensor` depends on."""
        return [name.removeprefix(_PARAMETER) for name in self._get(tensor) if name.startswith(_PARAMETER)]

    def _get(self, tensor: torch.Tensor) -> frozenset[str]:
        return self._names.get(storage_key(tensor), _NO_NAMES)

    def _set(self, tensor: torch.Tensor, names: frozenset[str]) -> None:
        self._storages.append(tensor.untyped_storage())
        self._names[storage_key(tensor)] = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._paused:
            return func(*args, **(kwargs or {}))
        replacement = without_dropout(func, args, kwargs)
        if replacement is not None:
            self._trace.context.has_dropout = True
        arguments: list[torch.Tensor] = []
        _collect_tensors(args, arguments)
        if kwargs:
            _collect_tensors(kwargs, arguments)
        names = _NO_NAMES.union(*[self._get(argument) for argument in arguments])
        weights = [name for name in names if name.startswith(_WEIGHT)]
        if weights:
            names = names.difference(weights) | self._read_weights(weights)
            args, kwargs = tree_map_only(torch.Tensor, self._with_values, (args, kwargs or {}))
        opened = with_open_gates(func, args) if self.kept is not None and replacement is None else None
        result = (replacement or opened or func)(*args, **(kwargs or {}))
        operation = _operation(func)
        if operation.is_dropout or (replacement is not None and not operation.is_random):
            names |= {_DROPOUT}
        if operation.is_random:
            self._trace.nondeterministic |= replacement is None
        results: list[torch.Tensor] = []
        if names or self.kept is not None:
            _collect_tensors(result, results)
        if names:
            self._record(operation, len(arguments), names)
            for tensor in results:
                self._set(tensor, self._get(tensor) | names)
        if self.kept is not None:
            self.kept.add_created(results, arguments)
            self.kept.add(func.__name__, arguments, results, _without_marks(names))
        return result

    def _read_weights(self, marks: Iterable[str]) -> frozenset[str]:
        """Record that an operation reads weights, unless their own embedding looks rows up; return their names."""
        trace = self._trace
        own = {mark for module in trace.context.reading for mark in self._get(module.weight)}
        read = [mark.removeprefix(_WEIGHT) for mark in marks if mark not in own]
        trace.embedding_calls.update(mark.removeprefix(_WEIGHT) for mark in marks if mark in own)
        if read:
            reader = _calling_class()
            for name in read:
                trace.weight_reads.setdefault(name, f"the forward of {reader}")
        return frozenset(_PARAMETER + name for name in read)

    def _with_values(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return random values for a weight on the meta device that a forward reads; any other tensor unchanged."""
        if not tensor.is_meta:
            return tensor
        name = next((name for name in self._get(tensor) if name.startswith(_WEIGHT)), None)
        if name is None:
            return tensor
        if name not in self._substitutes:
            generator = torch.Generator().manual_seed(2)
            values = torch.randn(tensor.shape, generator=generator).to(activation_device(), tensor.dtype)
            self._substitutes[name] = values
            self._set(values, self._get(tensor))
        return self._substitutes[name]

    def keep_substitutes(self, model: nn.Module) -> None:
        """Let later runs use the values that stood for the weights on the meta device which the forward read."""
        for name, values in self._substitutes.items():
            owner, _, attribute = name.removeprefix(_WEIGHT).rpartition(".")
            module = model.get_submodule(owner)
            original = model.get_parameter(name.removeprefix(_WEIGHT))
            self._trace.context.replacements.append(Replacement(module, attribute, original, values))

    def _record(self, operation: _Operation, tensor_count: int, names: frozenset[str]) -> None:
        """Add to the trace what an operation on `tensor_count` tensors with these names shows."""
        linears = _without_marks(names)
        if _DROPOUT in names:
            self._trace.reach_dropout |= linears
        for name in names - linears - {_DROPOUT}:
            self._trace.reach_parameter.setdefault(name.removeprefix(_PARAMETER), set()).update(linears)
        if operation.is_product and tensor_count > 1:
            self._trace.reach_attention |= linears


def _calling_class() -> str:
    """Return the class of the module whose forward is the innermost one in the stack of calls."""
    module = running_module()
    return type(module).__qualname__ if module is not None else "a function"


def _without_marks(names: frozenset[str]) -> frozenset[str]:
    return frozenset(name for name in names if not name.startswith((_PARAMETER, _DROPOUT, _WEIGHT)))


def _collect_tensors(value: Any, found: list[torch.Tensor]) -> None:
    """Append the tensors of an operation's arguments or results to `found`; faster than torch's tree_leaves."""
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, (tuple, list)):
        for item in value:
            _collect_tensors(item, found)
    elif isinstance(value, dict):
        for item in value.values():
            _collect_tensors(item, found)


@dataclass(frozen=True, slots=True)
class _Operation:
    """What kind of operation a torch function is: a dropout, another draw of random numbers, a batched product."""

    is_dropout: bool
    is_random: bool
    is_product: bool


_DROPOUT_WORDS = ("bernoulli", "native_dropout")
_RANDOM_WORDS = ("rand", "normal_", "uniform_", "exponential_", "multinomial")
_PRODUCT_WORDS = ("bmm", "baddbmm", "scaled_dot_product", "flash_attention", "efficient_attention")


@cache
def _operation(func: Any) -> _Operation:
    """Return the kind of an operation, which its name shows."""
    name = func.__name__
    return _Operation(
        any(word in name for word in _DROPOUT_WORDS),
        any(word in name for word in _RANDOM_WORDS),
        any(word in name for word in _PRODUCT_WORDS),
    )
