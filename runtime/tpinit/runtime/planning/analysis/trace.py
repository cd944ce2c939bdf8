"""One run of a model in which every weight matrix is a stub: which matrices feed which, and what passes between.

A stub returns random numbers of the right shape, so the run costs no matrix product, needs no weights (they
may be on the meta device), and does not depend on what the weights happen to be. Every tensor carries the
names of the nearest matrices whose outputs reached it, by its storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from tpinit.runtime.planning.analysis.dropout_off import DropoutDisabled, without_dropout
from tpinit.runtime.planning.analysis.fake_forward import ForwardContext, forward_context, run_fake_forward
from tpinit.runtime.planning.analysis.linears import LinearInfo

__all__ = ["Trace", "trace_forward"]

_PRODUCTS = ("bmm", "baddbmm", "scaled_dot_product", "flash_attention", "efficient_attention")


@dataclass(slots=True)
class Trace:
    """What one run showed.

    `sources[m]` are the matrices whose outputs reach the input of m with no other matrix between; `attending`
    those that go through a product of two activations (attention) on their way; `meets[p]` the matrices whose
    outputs meet the parameter p; `ends` those that reach the model's outputs; `inputs` and `outputs` the
    tensors of each call, in order; `readers` who was given one and the same tensor, each time. `randomised` are the
    matrices whose outputs meet random numbers before the next matrix (dropout), which a run in evaluation mode does
    not show; `chancy` those that meet other random numbers (the rotations of hashed attention). Nothing was dropped;
    `drew` says whether numbers were drawn all the same, which are others in every run. `stage` is what later runs of
    the same model need to know of it.
    """

    context: ForwardContext
    sources: dict[str, frozenset[str]] = field(default_factory=dict)
    reach_attention: set[str] = field(default_factory=set)
    reach_dropout: set[str] = field(default_factory=set)
    reach_random: set[str] = field(default_factory=set)
    nondeterministic: bool = False
    reach_parameter: dict[str, set[str]] = field(default_factory=dict)
    reach_output: frozenset[str] = frozenset()
    inputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    outputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    expert_outputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    reader_groups: list[list[str]] = field(default_factory=list)


def trace_forward(model: nn.Module, inputs: Mapping[str, Any], context: ForwardContext | None = None) -> Trace:
    """Run the model on `inputs` with stubs, in the mode of the stage, and return what was seen. Changes nothing.

    Without a stage that is evaluation mode. Raises whatever the model's forward raises.
    """
    context = context or forward_context(model)
    seen = Trace(context)
    watch = _Watch(model, seen, context)
    generator = torch.Generator().manual_seed(0)
    held: dict[int, tuple[torch.Tensor, list[str]]] = {}  # with the tensor, so that no address is used again

    def read(name: str, features: torch.Tensor) -> None:
        if id(features) not in held:
            held[id(features)] = features, []
            seen.reader_groups.append(held[id(features)][1])
        held[id(features)][1].append(name)

    def matrix(one: LinearInfo, features: torch.Tensor) -> torch.Tensor:
        read(one.name, features)
        seen.sources[one.name] = seen.sources.get(one.name, frozenset()) | watch.matrices(features)
        with watch.pause():
            output = _random((*features.shape[:-1], one.out_features), features, generator)
            seen.inputs.setdefault(one.name, []).append(features.detach().clone())
            seen.outputs.setdefault(one.name, []).append(output)
            return watch.mark(output.clone(), one.name)

    def experts(name: str, features: torch.Tensor) -> torch.Tensor:
        read(name, features)
        with watch.pause():
            output = _random(tuple(features.shape), features, generator)
            seen.expert_outputs.setdefault(name, []).append(output)
            return watch.mark(output.clone(), name)

    with watch:
        result = run_fake_forward(model, inputs, matrix, experts, watch.parameter, context)
    values = result.values() if isinstance(result, Mapping) else tree_leaves(result)
    ended = [one for value in values for one in tree_leaves(value) if isinstance(one, torch.Tensor)]
    seen.reach_output = frozenset().union(*(watch.matrices(one) for one in ended))
    return seen


def _random(shape: tuple[int, ...], like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    dtype = like.dtype if like.is_floating_point() else torch.float32
    return torch.randn(shape, generator=generator).to(like.device, dtype)


class _Watch(DropoutDisabled):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    """Carries names from tensor to tensor through every operation, but for those while it pauses."""

    def __init__(self, model: nn.Module, seen: Trace, context: ForwardContext) -> None:
        super().__init__()
        self._paused = False
        self._seen = seen
        self._names: dict[int, frozenset[str]] = {}
        self._kept: list[Any] = []  # so that no storage is freed and its address used again
        of_matrices = {id(one) for matrix in context.linears.values() for one in matrix.module.parameters()}
        for name, parameter in model.named_parameters():
            if id(parameter) not in of_matrices:
                self._set(parameter, frozenset({_PARAMETER + name}))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Look away for a time."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def parameter(self, away: torch.Tensor, here: torch.Tensor) -> None:
        """Let what stands in for a parameter carry that parameter's name."""
        self._set(here, self._get(away))

    def mark(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """Let a tensor carry one name and nothing else."""
        self._set(tensor, frozenset({name}))
        return tensor

    def matrices(self, tensor: torch.Tensor) -> frozenset[str]:
        """Return the names of matrices that a tensor carries."""
        return frozenset(name for name in self._get(tensor) if not name.startswith((_PARAMETER, _NOISE, _LUCK)))

    def _get(self, tensor: torch.Tensor) -> frozenset[str]:
        return self._names.get(tensor.untyped_storage()._cdata, _NONE)

    def _set(self, tensor: torch.Tensor, names: frozenset[str]) -> None:
        storage = tensor.untyped_storage()
        self._kept.append(storage)
        self._names[storage._cdata] = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._paused:
            return func(*args, **(kwargs or {}))
        instead = without_dropout(func, args, kwargs)
        if instead is not None:
            self._seen.context.has_dropout = True
        result = (instead or func)(*args, **(kwargs or {}))
        given: list[torch.Tensor] = []
        _tensors(args, given)
        if kwargs:
            _tensors(kwargs, given)
        names = _NONE.union(*[self._get(one) for one in given])
        kind = _kind_of(func)
        if kind.random or (instead is not None and not kind.chance):
            names |= {_NOISE}
        if kind.chance:
            names |= {_LUCK}
            self._seen.nondeterministic |= instead is None
        if names:
            self._note(kind, len(given), names)
            made: list[torch.Tensor] = []
            _tensors(result, made)
            for one in made:
                self._set(one, self._get(one) | names)
        return result

    def _note(self, kind: _Kind, given: int, names: frozenset[str]) -> None:
        matrices = {name for name in names if not name.startswith((_PARAMETER, _NOISE, _LUCK))}
        if _NOISE in names:
            self._seen.reach_dropout |= matrices
        if _LUCK in names:
            self._seen.reach_random |= matrices
        for name in names - matrices - {_NOISE, _LUCK}:
            self._seen.reach_parameter.setdefault(name.removeprefix(_PARAMETER), set()).update(matrices)
        if kind.product and given > 1:
            self._seen.reach_attention |= matrices


_NONE: frozenset[str] = frozenset()


def _tensors(value: Any, found: list[torch.Tensor]) -> None:
    """Collect the tensors of an operation's arguments, or results: there are lists and tuples of them, no more."""
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, (tuple, list)):
        for one in value:
            _tensors(one, found)
    elif isinstance(value, dict):
        for one in value.values():
            _tensors(one, found)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What an operation's name says of it."""

    random: bool
    chance: bool
    product: bool


@cache
def _kind_of(func: Any) -> _Kind:
    name = func.__name__
    return _Kind(
        any(word in name for word in _RANDOM),
        any(word in name for word in _CHANCE),
        any(word in name for word in _PRODUCTS),
    )


_PARAMETER = "parameter:"
_NOISE = "noise:"
_LUCK = "luck:"
_RANDOM = ("bernoulli", "native_dropout")
_CHANCE = ("rand", "normal_", "uniform_", "exponential_", "multinomial")
