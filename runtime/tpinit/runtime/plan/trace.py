"""One run of a model in which every weight matrix is a stub: which matrices feed which, and what passes between.

A stub returns random numbers of the right shape, so the run costs no matrix product, needs no weights (they
may be on the meta device), and does not depend on what the weights happen to be. Every tensor carries the
names of the nearest matrices whose outputs reached it, by its storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    "HELD",
    "Matrix",
    "Stage",
    "Trace",
    "draws",
    "evaluating",
    "expert_weights",
    "experts_in_rows",
    "experts_of",
    "matrices_of",
    "run_with_stubs",
    "stage_of",
    "trace",
    "untouched",
]

HELD = "_tp_held"  # in a module that is rehearsed: which pieces of its parameters a rank has
_PRODUCTS = ("bmm", "baddbmm", "scaled_dot_product", "flash_attention", "efficient_attention")


@dataclass(frozen=True, slots=True)
class Matrix:
    """A module that multiplies the last dimension of its input by a weight: a linear layer, or GPT-2's Conv1D.

    `out_dim` is the dimension of the weight that the output's features lie along: 0 for [out, in], 1 for [in, out].
    """

    name: str
    module: nn.Module
    out_dim: int

    @property
    def out_features(self) -> int:
        """The size of the output's last dimension."""
        return int(self._weight.shape[self.out_dim])

    @property
    def in_features(self) -> int:
        """The size of the input's last dimension."""
        return int(self._weight.shape[1 - self.out_dim])

    @property
    def _weight(self) -> torch.Tensor:
        weight = self.module.weight
        assert isinstance(weight, torch.Tensor)
        return weight


@dataclass(slots=True)
class Trace:
    """What one run showed.

    `sources[m]` are the matrices whose outputs reach the input of m with no other matrix between; `attending`
    those that go through a product of two activations (attention) on their way; `meets[p]` the matrices whose
    outputs meet the parameter p; `ends` those that reach the model's outputs; `inputs` and `outputs` the
    tensors of each call, in order; `readers` who was given one and the same tensor, each time. `randomised` are the
    matrices whose outputs meet random numbers before the next matrix (dropout), which a run in evaluation mode does
    not show; `chancy` those that meet other random numbers (the rotations of hashed attention). `stage` is what later
    runs of the same model need to know of it.
    """

    sources: dict[str, frozenset[str]] = field(default_factory=dict)
    attending: set[str] = field(default_factory=set)
    randomised: set[str] = field(default_factory=set)
    chancy: set[str] = field(default_factory=set)
    meets: dict[str, set[str]] = field(default_factory=dict)
    ends: frozenset[str] = frozenset()
    inputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    outputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    experts: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    readers: list[list[str]] = field(default_factory=list)
    stage: Stage | None = None


def matrices_of(model: nn.Module) -> dict[str, Matrix]:
    """Return every module that is a weight matrix, by its name: nn.Linear and what derives from it, and Conv1D."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if type(module).forward is nn.Linear.forward or _is_linear(module):
                found[name] = Matrix(name, module, 0)
        elif type(module).__module__ == "transformers.pytorch_utils" and type(module).__qualname__ == "Conv1D":
            found[name] = Matrix(name, module, 1)
    return found


def _is_linear(module: nn.Linear) -> bool:
    """Tell whether what derives from a linear layer still computes what one does (a router does not)."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((1, 2, module.in_features), generator=generator)
    random = torch.randn((module.out_features, module.in_features), generator=generator)
    bias = None if module.bias is None else torch.randn(module.out_features, generator=generator)
    kept = module.__dict__.pop("forward", None)
    module.__dict__["weight"] = random
    if bias is not None:
        module.__dict__["bias"] = bias
    try:
        with torch.no_grad():
            found = module.forward(features)
    except Exception:  # it asks for more than its input: it is something else
        return False
    finally:
        del module.__dict__["weight"]
        module.__dict__.pop("bias", None)
        if kept is not None:
            module.__dict__["forward"] = kept
    expected = nn.functional.linear(features, random, bias)
    return (
        isinstance(found, torch.Tensor)
        and found.shape == expected.shape
        and torch.allclose(found, expected, 1e-3, 1e-3)
    )


def experts_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module that holds the weights of all experts of a layer, by its name.

    In tensors of three dimensions; or of two, the rows of one expert after those of another, in a module below.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not any(name.startswith(f"{outer}.") for outer in found) and (_stacked(module) or experts_in_rows(module)):
            found[name] = module
    return found


def _stacked(module: nn.Module) -> bool:
    return {"gate_up_proj", "down_proj"} <= {key for key, one in module._parameters.items() if one is not None} and all(
        one is None or one.dim() == 3 for key, one in module._parameters.items() if key.endswith("_proj")
    )


def experts_in_rows(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Return, where all weights below a module are [experts * width, hidden], what (experts, width) may be."""
    if any(one is not None for one in module._parameters.values()) or not any(module.children()):
        return ()
    below = list(module.named_parameters())
    shapes = {tuple(one.shape) for _, one in below}
    if len(below) < 2 or len(shapes) != 1 or any(name.endswith((".weight", ".bias")) for name, _ in below):
        return ()
    (shape,) = shapes
    numbers = {one for one in vars(module).values() if type(one) is int and one > 1}
    if len(shape) != 2 or shape[1] not in numbers:
        return ()
    pairs = ((count, shape[0] // count) for count in sorted(numbers) if shape[0] % count == 0)
    return tuple((count, width) for count, width in pairs if width in numbers)


def expert_weights(module: nn.Module) -> list[str]:
    """Return the names, below a block of experts, of the weights that are cut together."""
    return ["gate_up_proj", "down_proj"] if _stacked(module) else [name for name, _ in module.named_parameters()]


def trace(model: nn.Module, inputs: Mapping[str, Any], training: bool = False, stage: Stage | None = None) -> Trace:
    """Run the model on `inputs` with stubs, in evaluation mode or not, and return what was seen. Changes nothing.

    Raises whatever the model's forward raises.
    """
    stage = stage or stage_of(model)
    seen = Trace(stage=stage)
    watch = _Watch(model, seen, stage)
    generator = torch.Generator().manual_seed(0)
    held: dict[int, tuple[torch.Tensor, list[str]]] = {}  # with the tensor, so that no address is used again

    def read(name: str, features: torch.Tensor) -> None:
        if id(features) not in held:
            held[id(features)] = features, []
            seen.readers.append(held[id(features)][1])
        held[id(features)][1].append(name)

    def matrix(one: Matrix, features: torch.Tensor) -> torch.Tensor:
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
            seen.experts.setdefault(name, []).append(output)
            return watch.mark(output.clone(), name)

    with watch:
        result = run_with_stubs(model, inputs, matrix, experts, training, watch.parameter, stage)
    values = result.values() if isinstance(result, Mapping) else tree_leaves(result)
    ended = [one for value in values for one in tree_leaves(value) if isinstance(one, torch.Tensor)]
    seen.ends = frozenset().union(*(watch.matrices(one) for one in ended))
    return seen


def draws(model: nn.Module, inputs: Mapping[str, Any], training: bool, stage: Stage | None = None) -> bool:
    """Run the model with stubs, and tell whether its forward draws any random number, or is asked to drop out."""
    rolls = _Rolls()
    generator = torch.Generator().manual_seed(0)

    def matrix(one: Matrix, features: torch.Tensor) -> torch.Tensor:
        with rolls.pause():
            return _random((*features.shape[:-1], one.out_features), features, generator)

    def experts(_: str, features: torch.Tensor) -> torch.Tensor:
        with rolls.pause():
            return _random(tuple(features.shape), features, generator)

    with rolls:
        run_with_stubs(model, inputs, matrix, experts, training, stage=stage)
    return rolls.seen


@dataclass(slots=True)
class Stage:
    """What runs of one model with stubs need to know of it: found once, as long as nobody changes the model.

    `swapped` are the tensors for which others stand in: module, name, the tensor, and the other one.
    """

    modules: list[nn.Module]
    matrices: dict[str, Matrix]
    experts: dict[str, nn.Module]
    embeddings: list[nn.Embedding]
    swapped: list[tuple[nn.Module, str, torch.Tensor, torch.Tensor]]


def stage_of(model: nn.Module) -> Stage:
    """Return what runs with stubs need. Reads the model, changes nothing.

    The small tensors of a model on the meta device get numbers: norms, routers, tables. And the vectors of norms in
    any case: new ones are all alike, and so would be whatever takes one for another.
    """
    modules = list(model.modules())
    matrices, experts = matrices_of(model), experts_of(model)
    embeddings = [module for module in modules if isinstance(module, nn.Embedding)]
    stubbed = {id(one) for matrix in matrices.values() for one in matrix.module.parameters(recurse=False)}
    stubbed |= {id(one) for module in experts.values() for one in module.parameters()}
    stubbed |= {id(one) for module in embeddings for one in module.parameters()}
    generator = torch.Generator().manual_seed(1)
    swapped: list[tuple[nn.Module, str, torch.Tensor, torch.Tensor]] = []
    for module in modules:
        for kind in (module._parameters, module._buffers):
            for name, one in kind.items():
                if one is None or id(one) in stubbed:
                    continue
                vector = kind is module._parameters and one.dim() == 1 and not module._modules
                if kind is module._buffers and isinstance(module, _NormBase) and not one.is_meta:
                    swapped.append((module, name, one, one))  # a run in training writes to it
                elif one.is_meta or vector:
                    real = torch.zeros(one.shape, dtype=one.dtype)
                    if one.is_floating_point():
                        real.normal_(generator=generator)
                    swapped.append((module, name, one, real if one.is_meta else real.to(one.device)))
    return Stage(modules, matrices, experts, embeddings, swapped)


def run_with_stubs(
    model: nn.Module,
    inputs: Mapping[str, Any],
    matrix: Callable[[Matrix, torch.Tensor], torch.Tensor],
    experts: Callable[[str, torch.Tensor], torch.Tensor],
    training: bool = False,
    stand_in: Callable[[torch.Tensor, torch.Tensor], None] = lambda *_: None,
    stage: Stage | None = None,
) -> Any:
    """Run a forward in which `matrix` answers for each weight matrix and `experts` for each block of experts.

    `stand_in` hears of each tensor on the meta device, and of the one with numbers that stands in for it. `stage`
    is what `stage_of` returned for this very model.
    """
    stage = stage or stage_of(model)
    with torch.no_grad(), _in_mode(model, training, stage.modules), _set(stage, matrix, experts, stand_in):
        return model(**inputs)


@contextmanager
def _set(
    stage: Stage,
    matrix: Callable[[Matrix, torch.Tensor], torch.Tensor],
    experts: Callable[[str, torch.Tensor], torch.Tensor],
    stand_in: Callable[[torch.Tensor, torch.Tensor], None],
) -> Iterator[None]:
    """Put stubs in place of forwards, and tensors with numbers in place of those without, for the time of a run."""
    kept: list[tuple[dict[str, Any], Any]] = []

    def stub(module: nn.Module, forward: Callable[..., Any]) -> None:
        kept.append((module.__dict__, module.__dict__.get("forward")))
        module.__dict__["forward"] = forward

    try:
        for module, name, one, real in stage.swapped:
            # What a run may write to, the next one has anew.
            here = real if name in module._parameters else real.clone()
            if name in module.__dict__.get(HELD, {}):  # a rehearsal has put a rank's part in its place
                here = torch.cat([here.narrow(0, *held) for held in module.__dict__[HELD][name]])
            module.__dict__[name] = here
            stand_in(one, here)
        for one_matrix in stage.matrices.values():
            stub(one_matrix.module, _matrix_stub(one_matrix, matrix))
        for name, module in stage.experts.items():
            stub(module, _experts_stub(name, experts))
        for embedding in stage.embeddings:
            if embedding.weight.is_meta:
                stub(embedding, _embedding_stub(embedding))
        yield
    finally:
        for held, forward in reversed(kept):
            if forward is None:
                del held["forward"]
            else:
                held["forward"] = forward
        for module, name, _, _ in stage.swapped:
            module.__dict__.pop(name, None)


def _matrix_stub(
    one: Matrix, matrix: Callable[[Matrix, torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda input, *_, **__: matrix(one, input)


def _experts_stub(name: str, experts: Callable[[str, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda hidden_states, *_, **__: experts(name, hidden_states)


def _embedding_stub(module: nn.Embedding) -> Callable[[torch.Tensor], torch.Tensor]:
    def look_up(input: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        ramp = torch.linspace(-1, 1, module.embedding_dim).expand(*input.shape, -1)
        return ramp + input.unsqueeze(-1).to(ramp.dtype) * 0.1

    return look_up


def _random(shape: tuple[int, ...], like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    dtype = like.dtype if like.is_floating_point() else torch.float32
    return torch.randn(shape, generator=generator).to(like.device, dtype)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Keep what the user hung on a model out of what runs inside: hooks do not fire, random numbers stay theirs."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    kept = [(module, kind, getattr(module, kind)) for module in model.modules() for kind in kinds]
    for module, kind, hooks in kept:
        module.__dict__[kind] = type(hooks)()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, kind, hooks in kept:
            module.__dict__[kind] = hooks


@contextmanager
def _in_mode(model: nn.Module, training: bool, modules: Sequence[nn.Module]) -> Iterator[None]:
    modes = [module.training for module in modules]
    if all(mode is training for mode in modes):
        yield
        return
    model.train(training)
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.__dict__["training"] = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Let a model be in evaluation mode for several runs, each of which then need not see to it."""
    with _in_mode(model, False, list(model.modules())):
        yield


class _Pausing(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves the base untyped
    """Sees every operation, but for those while it pauses."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the same
        self._paused = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that nothing here needs to be kept from a compiler: that guard costs more than what it guards."""
        return False

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Look away for a time."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False


class _Rolls(_Pausing):  # type: ignore[no-untyped-call]  # torch leaves the base untyped
    """Sees whether random numbers are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._paused and not self.seen:
            kind = _kind_of(func)
            self.seen = kind.random or kind.chance or (kind.attends and _drops(func, args, kwargs))
        return func(*args, **(kwargs or {}))


class _Watch(_Pausing):  # type: ignore[no-untyped-call]  # the same
    """Carries names from tensor to tensor through every operation."""

    def __init__(self, model: nn.Module, seen: Trace, stage: Stage) -> None:
        super().__init__()
        self._seen = seen
        self._names: dict[int, frozenset[str]] = {}
        self._kept: list[Any] = []  # so that no storage is freed and its address used again
        of_matrices = {id(one) for matrix in stage.matrices.values() for one in matrix.module.parameters()}
        for name, parameter in model.named_parameters():
            if id(parameter) not in of_matrices:
                self._set(parameter, frozenset({_PARAMETER + name}))

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
        result = func(*args, **(kwargs or {}))
        if self._paused:
            return result
        given: list[torch.Tensor] = []
        _tensors(args, given)
        if kwargs:
            _tensors(kwargs, given)
        names = _NONE.union(*[self._get(one) for one in given])
        kind = _kind_of(func)
        if kind.random or (kind.attends and _drops(func, args, kwargs)):
            names |= {_NOISE}
        if kind.chance:
            names |= {_LUCK}
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
            self._seen.randomised |= matrices
        if _LUCK in names:
            self._seen.chancy |= matrices
        for name in names - matrices - {_NOISE, _LUCK}:
            self._seen.meets.setdefault(name.removeprefix(_PARAMETER), set()).update(matrices)
        if kind.product and given > 1:
            self._seen.attending |= matrices


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
    attends: bool


@cache
def _kind_of(func: Any) -> _Kind:
    name = func.__name__
    return _Kind(
        any(word in name for word in _RANDOM),
        any(word in name for word in _CHANCE),
        any(word in name for word in _PRODUCTS),
        "attention" in name,
    )


_PARAMETER = "parameter:"
_NOISE = "noise:"
_LUCK = "luck:"
_RANDOM = ("bernoulli", "native_dropout")
_CHANCE = ("rand", "normal_", "uniform_", "exponential_", "multinomial")


def _drops(func: Any, args: Any, kwargs: Any) -> bool:
    """Tell whether a fused attention is asked to drop out: its probability is an argument."""
    names = [one.name for one in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
    return bool(given.get("dropout_p", 0.0))
