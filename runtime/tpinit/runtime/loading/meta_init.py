"""A model whose parameters are on the meta device and whose initialisation is recorded, to be replayed slice by slice.

What the constructors write to each tensor is recorded, with the RNG state that it is drawn from. So a buffer can be
computed afterwards, and this rank's slice of a random parameter, with the values that the unsharded model would have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from tpinit.runtime.errors import LoadError
from tpinit.runtime.internals.torch_private import (
    NO_OP_ON_META,
    PlainDispatchMode,
    buffers_of,
    is_mutable,
    parameters_of,
    storage_key,
    tree_leaves,
    tree_map_only,
    writes_only_first,
)
from tpinit.runtime.loading.init_patches import InitFunction, parameters_to_meta, recorded_inits
from tpinit.runtime.loading.replay import InitStep, ScratchMemory, copy_pieces, draw_and_discard, draw_pieces
from tpinit.runtime.planning.schema import ParameterPlan

__all__ = ["MetaModel", "build_meta_model"]


@dataclass(slots=True)
class MetaModel:
    """A model whose large tensors are on the meta device, and the recorded initialisation of these tensors."""

    model: nn.Module
    _steps: dict[int, list[InitStep]] = field(default_factory=dict)  # by storage
    _storages: list[Any] = field(default_factory=list)  # kept alive, so that no other storage gets the same key
    _parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    _scratch: ScratchMemory = field(default_factory=ScratchMemory)

    def make_placeholders(self) -> None:
        """Replace every parameter on the meta device by one of the same shape on the CPU that takes no memory.

        An optimizer can be built over the placeholders, and their data can be set.
        """
        placeholders: dict[int, nn.Parameter] = {}
        for name, parameter in self.model.named_parameters():
            self._parameters[name] = parameter.detach()
            if parameter.is_meta:
                empty = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                placeholder = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                placeholder.__dict__.update(parameter.__dict__)
                placeholders[id(parameter)] = placeholder
        for module in self.model.modules():
            own = parameters_of(module)
            for name, held in own.items():
                if held is not None and id(held) in placeholders:
                    own[name] = placeholders[id(held)]

    def fill_buffers(self, loaded: Sequence[str] = ()) -> None:
        """Compute every buffer that is on the meta device. Those named in `loaded` get memory alone.

        Raises LoadError, with the name of each buffer whose values can't be computed without the unsharded model.
        """
        problems = []
        for path, module in self.model.named_modules():
            own = buffers_of(module)
            for name, buffer in own.items():
                if buffer is None or not buffer.is_meta:
                    continue
                full_name = f"{path}.{name}" if path else name
                try:
                    own[name] = torch.empty_like(buffer, device="cpu") if full_name in loaded else self._replay(buffer)
                except LoadError as error:
                    problems.append(f"{full_name}: {error}")
        if problems:
            raise LoadError(
                "buffers of this model can't be computed without building it whole:\n  " + "\n  ".join(problems)
            )

    def check_drawn(self) -> None:
        """Raise LoadError, with its name and the reason, for each parameter that can't be initialised on its own."""
        problems = []
        for name, parameter in self.model.named_parameters():
            if parameter.is_meta:
                steps = self._steps.get(storage_key(parameter), [])
                problem = next((step.problem for step in steps if step.problem), "" if steps else _UNINITIALISED)
                if problem:
                    problems.append(f"{name}: {problem}")
        if problems:
            raise LoadError("this model can't be drawn one parameter at a time:\n  " + "\n  ".join(problems))

    def draw_into(self, out: torch.Tensor, record: ParameterPlan, tp_size: int, tp_rank: int) -> None:
        """Write this rank's slice of a parameter to `out`, with the values that its class would have drawn."""
        parameter = self._parameters[record.name]
        pieces = record.pieces_of(tp_size, tp_rank)
        if not parameter.is_meta:
            copy_pieces(parameter, record.dim, pieces, out)
            return
        steps = self._steps[storage_key(parameter)]
        if len(steps) == 1 and steps[0].draws_in_order(parameter.dtype) and parameter.is_contiguous():
            draw_pieces(steps[0], parameter, record.dim, pieces, out, self._scratch)
        else:
            copy_pieces(self._replay(parameter), record.dim, pieces, out)

    def _replay(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor on the CPU with the values that the recorded steps give it."""
        steps = self._steps.get(storage_key(tensor), [])
        if not steps:
            raise LoadError(_UNINITIALISED)
        memory = torch.empty(tensor.untyped_storage().nbytes() // tensor.element_size(), dtype=tensor.dtype)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for step in steps:
                step.run(memory)
        return memory.as_strided(tensor.size(), tensor.stride(), int(tensor.storage_offset()))


_UNINITIALISED = "its class leaves it empty"


def build_meta_model(build: Callable[[], nn.Module], seed: int | None = None) -> MetaModel:
    """Return the model that `build` returns, without the values of its parameters.

    With a `seed`, every random value is drawn and dropped, and its RNG state recorded, as if `torch.manual_seed(seed)`
    had been called just before `build`. Without one, no parameter can be drawn later, and large real parameters are
    moved to the meta device. The caller's RNG state is kept.
    """
    found = MetaModel(nn.Module())
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU
        recorder = _Recorder(found, draws=seed is not None)
        with parameters_to_meta(seed is None), recorded_inits(recorder.recording), recorder, _EmptyOnMeta():
            found.model = build()
    return found


class _EmptyOnMeta(TorchFunctionMode):
    """Makes `torch.empty` return a tensor on the meta device, unless the caller names a device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs is None:
            kwargs = {}
        if function is torch.empty and kwargs.get("device") is None and kwargs.get("out") is None:
            kwargs = {**kwargs, "device": torch.device("meta")}
        return function(*args, **kwargs)


class _Recorder(PlainDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its bases untyped
    """Records each operator that writes to a tensor on the meta device. With `draws`, advances the RNG as it would."""

    def __init__(self, found: MetaModel, draws: bool) -> None:
        super().__init__()
        self._found = found
        self._draws = draws

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        target = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if target is not None and target.is_meta and is_mutable(func):
            if writes_only_first(func):
                self._record(func, target, args[1:], kwargs)
            else:
                self._record_problem(target, f"{func.__name__} writes to more than one tensor")
        elif torch.Tag.nondeterministic_seeded in func.tags and _has_meta((args, kwargs)):
            raise LoadError(f"{func.__name__} draws numbers like those of a parameter: build the whole model instead")
        return func(*args, **kwargs)

    def recording(self, original: InitFunction) -> InitFunction:
        """Return a function of torch.nn.init that records itself, as one step, for a tensor on the meta device."""

        def record(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if not tensor.is_meta:
                return original(tensor, *args, **kwargs)
            self._record(original, tensor, args, kwargs)
            return tensor

        return record

    def _record(self, func: Any, target: torch.Tensor, args: Any, kwargs: dict[str, Any]) -> None:
        if _has_meta((args, kwargs)):
            self._record_problem(target, f"{func.__name__} takes numbers from another parameter")
            return
        random = torch.Tag.nondeterministic_seeded in getattr(func, "tags", (torch.Tag.nondeterministic_seeded,))
        if random and kwargs.get("generator") is not None:
            self._record_problem(target, f"{func.__name__} has a generator of its own")
            return
        kept_args, kept_kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), (args, kwargs))
        state = torch.get_rng_state() if random and self._draws else None
        step = _step(target, func, tuple(kept_args), kept_kwargs, state)
        if random and not self._draws:
            step.problem = "it is drawn at random"
        elif random:
            draw_and_discard(step, target, self._found._scratch)
        self._add(target, step)

    def _record_problem(self, target: torch.Tensor, problem: str) -> None:
        step = _step(target, None, (), {}, None)
        step.problem = problem
        self._add(target, step)

    def _add(self, target: torch.Tensor, step: InitStep) -> None:
        steps = self._found._steps.setdefault(storage_key(target), [])
        if not steps:
            self._found._storages.append(target.untyped_storage())
        covers_storage = target.numel() * target.element_size() == target.untyped_storage().nbytes()
        if covers_storage and getattr(step.operation, "__name__", "").split(".")[0] in _OVERWRITING:
            steps.clear()
        steps.append(step)


_OVERWRITING = {"normal_", "uniform_", "fill_", "zero_", "copy_", *NO_OP_ON_META}


def _has_meta(arguments: Any) -> bool:
    return any(leaf.is_meta for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor))


def _step(
    target: torch.Tensor, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], state: torch.Tensor | None
) -> InitStep:
    size, stride = tuple(target.size()), tuple(target.stride())
    return InitStep(operation, size, stride, int(target.storage_offset()), args, kwargs, state)
