"""A model without its numbers: its class builds it, and every tensor that begins empty begins on the meta device.

What the constructors would have written there is recorded, tensor by tensor. So a buffer can be had afterwards,
and this rank's part of a parameter that is drawn at random, with the numbers that the whole model would have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from tpinit.runtime.errors import LoadError
from tpinit.runtime.loading.init_patches import NO_OP_ON_META, parameters_to_meta, recorded_inits, skipped_inits
from tpinit.runtime.planning.schema import ParameterPlan
from tpinit.runtime.slicing import take_pieces

__all__ = ["MetaModel", "build_meta_model"]

# What is drawn at once. Torch draws normal numbers in groups of 16, so a multiple of that can be drawn alone.
_GROUP = 16
_DRAWN = 1 << 20


@dataclass(slots=True)
class _Step:
    """One operation on a tensor: its view of the memory, the rest of its arguments, the state it drew from."""

    operation: Any
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: torch.Tensor | None
    why: str = ""  # why it can't be done again

    def run(self, memory: torch.Tensor) -> None:
        """Do it on memory that holds what the steps before it left."""
        if self.why:
            raise LoadError(self.why)
        if self.state is not None:
            torch.set_rng_state(self.state)
        self.operation(memory.as_strided(self.size, self.stride, self.offset), *self.args, **self.kwargs)

    def streams(self, dtype: torch.dtype) -> bool:
        """Say whether it can be drawn a piece at a time, in order."""
        simple = self.operation in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)
        dense = self.offset == 0 and self.stride == _dense(self.size)
        return simple and dense and not self.why and dtype in (torch.float32, torch.float64)


@dataclass(slots=True)
class _Scratch:
    """Memory for numbers on their way, used again and again: taken anew each time, it would leave holes behind."""

    held: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def take(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return room for some numbers, until the next call."""
        needed = count * dtype.itemsize
        if needed > self.held.numel():
            self.held = torch.empty(0, dtype=torch.uint8, device="cpu")  # the old one goes first
            self.held = torch.empty(needed, dtype=torch.uint8, device="cpu")
        return self.held[:needed].view(dtype)


@dataclass(slots=True)
class MetaModel:
    """A model whose large tensors are on the meta device, and what is known of their numbers."""

    model: nn.Module
    _steps: dict[int, list[_Step]] = field(default_factory=dict)
    _kept: list[Any] = field(default_factory=list)  # so that no storage is freed and its address used again
    _parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    _scratch: _Scratch = field(default_factory=_Scratch)

    def make_placeholders(self) -> None:
        """Give every parameter on the meta device one of the same shape on the CPU that takes no memory.

        An optimizer can be built over these, and their data can be replaced.
        """
        made: dict[int, nn.Parameter] = {}
        for name, parameter in self.model.named_parameters():
            self._parameters[name] = parameter.detach()
            if parameter.is_meta:
                empty = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                made[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                made[id(parameter)].__dict__.update(parameter.__dict__)
        for module in self.model.modules():
            for name, held in module._parameters.items():
                if held is not None and id(held) in made:
                    module._parameters[name] = made[id(held)]

    def fill_buffers(self, others: Sequence[str] = ()) -> None:
        """Give every buffer its numbers, but `others`, which come from elsewhere and get memory alone.

        Raises LoadError, by name, for one whose numbers can't be had without building the whole model.
        """
        problems = []
        for path, module in self.model.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is None or not buffer.is_meta:
                    continue
                full = f"{path}.{name}" if path else name
                try:
                    module._buffers[name] = (
                        torch.empty_like(buffer, device="cpu") if full in others else self._all(buffer)
                    )
                except LoadError as error:
                    problems.append(f"{full}: {error}")
        if problems:
            raise LoadError(
                "buffers of this model can't be computed without building it whole:\n  " + "\n  ".join(problems)
            )

    def check_drawn(self) -> None:
        """Raise LoadError, by name, for parameters whose numbers can't be had one parameter at a time."""
        problems = []
        for name, parameter in self.model.named_parameters():
            if parameter.is_meta:
                steps = self._steps.get(_key(parameter), [])
                why = next((step.why for step in steps if step.why), "" if steps else "its class leaves it empty")
                if why:
                    problems.append(f"{name}: {why}")
        if problems:
            raise LoadError("this model can't be drawn one parameter at a time:\n  " + "\n  ".join(problems))

    def draw_into(self, out: torch.Tensor, record: ParameterPlan, tp_size: int, tp_rank: int) -> None:
        """Write this rank's part of a parameter to `out`, as the constructors would have left it."""
        parameter = self._parameters[record.name]
        held = record.pieces_of(tp_size, tp_rank)
        if not parameter.is_meta:
            _copy_pieces(parameter, record.dim, held, out)
            return
        steps = self._steps[_key(parameter)]
        if len(steps) == 1 and steps[0].streams(parameter.dtype) and parameter.is_contiguous():
            _stream_into(steps[0], parameter, record.dim, held, out, self._scratch)
        else:
            _copy_pieces(self._all(parameter), record.dim, held, out)

    def _all(self, tensor: torch.Tensor) -> torch.Tensor:
        steps = self._steps.get(_key(tensor), [])
        if not steps:
            raise LoadError("its class leaves it empty")
        memory = torch.empty(tensor.untyped_storage().nbytes() // tensor.element_size(), dtype=tensor.dtype)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for step in steps:
                step.run(memory)
        return memory.as_strided(tensor.size(), tensor.stride(), int(tensor.storage_offset()))


def build_meta_model(build: Callable[[], nn.Module], seed: int | None = None) -> MetaModel:
    """Return what `build` returns, without the numbers of its parameters.

    With a `seed` every random number is drawn, and the state it was drawn from recorded, as if the seed had been
    set just before `build`. Without, no parameter can be drawn later, and its large numbers are not kept. The
    caller's random numbers are left alone.
    """
    blank = MetaModel(nn.Module())
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        recorder = _Recorder(blank, seed is not None)
        with (
            parameters_to_meta(seed is None),
            recorded_inits(recorder.composed),
            skipped_inits(seed is None),
            recorder,
            _Empties(),
        ):
            blank.model = build()
    return blank


class _Empties(TorchFunctionMode):
    """Lets tensors that begin empty begin on the meta device, unless a device is named."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs is None:
            kwargs = {}
        if function is torch.empty and kwargs.get("device") is None and kwargs.get("out") is None:
            kwargs = {**kwargs, "device": torch.device("meta")}
        return function(*args, **kwargs)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Records what is written to tensors on the meta device, and draws what would have been drawn."""

    def __init__(self, blank: MetaModel, drawing: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._blank = blank
        self._drawing = drawing

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that nothing here needs to be kept from a compiler: that guard costs more than what it guards."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        target = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if target is not None and target.is_meta and func._schema.is_mutable:
            if not any(
                alias.alias_info is not None and alias.alias_info.is_write for alias in func._schema.arguments[1:]
            ):
                self._record(func, target, args[1:], kwargs)
            else:
                self._spoil(target, f"{func.__name__} writes to more than one tensor")
        elif torch.Tag.nondeterministic_seeded in func.tags and any(
            one.is_meta for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)
        ):
            raise LoadError(f"{func.__name__} draws numbers like those of a parameter: build the whole model instead")
        return func(*args, **kwargs)

    def composed(self, original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Return a function of torch.nn.init that is recorded, as one step, where it is asked for an empty tensor."""

        def record(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if not tensor.is_meta:
                return original(tensor, *args, **kwargs)
            self._record(original, tensor, args, kwargs)
            return tensor

        return record

    def _spoil(self, target: torch.Tensor, why: str) -> None:
        step = _Step(
            None, tuple(target.size()), tuple(target.stride()), int(target.storage_offset()), (), {}, None, why
        )
        self._add(target, step)

    def _record(self, func: Any, target: torch.Tensor, args: Any, kwargs: dict[str, Any]) -> None:
        if any(one.is_meta for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)):
            self._spoil(target, f"{func.__name__} takes numbers from another parameter")
            return
        random = torch.Tag.nondeterministic_seeded in getattr(func, "tags", (torch.Tag.nondeterministic_seeded,))
        if random and kwargs.get("generator") is not None:
            self._spoil(target, f"{func.__name__} has a generator of its own")
            return
        kept_args, kept = tree_map_only(torch.Tensor, lambda one: one.detach().clone(), (args, kwargs))
        step = _Step(
            func,
            tuple(target.size()),
            tuple(target.stride()),
            int(target.storage_offset()),
            tuple(kept_args),
            kept,
            torch.get_rng_state() if random and self._drawing else None,
        )
        if random and not self._drawing:
            step.why = "it is drawn at random"
        elif random:
            _draw(step, target, self._blank._scratch)
        self._add(target, step)

    def _add(self, target: torch.Tensor, step: _Step) -> None:
        steps = self._blank._steps.setdefault(_key(target), [])
        if not steps:
            self._blank._kept.append(target.untyped_storage())
        whole = target.numel() * target.element_size() == target.untyped_storage().nbytes()
        overwrites = getattr(step.operation, "__name__", "").split(".")[0] in _OVERWRITE
        if whole and overwrites:
            steps.clear()
        steps.append(step)


_OVERWRITE = {"normal_", "uniform_", "fill_", "zero_", "copy_", *NO_OP_ON_META}


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _dense(size: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(size[dim + 1 :]) for dim in range(len(size)))


def _draw(step: _Step, target: torch.Tensor, scratch: _Scratch) -> None:
    """Draw what the step draws, and drop it: the numbers after it are others then."""
    if step.streams(target.dtype):
        for _ in _chunks(step, target.dtype, 1, target.numel(), scratch):
            pass
        return
    memory = torch.empty(target.untyped_storage().nbytes() // target.element_size(), dtype=target.dtype, device="cpu")
    step.operation(memory.as_strided(step.size, step.stride, step.offset), *step.args, **step.kwargs)


def _chunks(
    step: _Step, dtype: torch.dtype, unit: int, count: int, scratch: _Scratch
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first unit, numbers of some units) of `count` units of `unit` numbers, drawn in order."""
    least = _GROUP // math.gcd(unit, _GROUP)
    units = max(1, _DRAWN // (unit * least)) * least
    begin = 0
    while begin < count:
        length = min(units, count - begin)
        if 0 < (count - begin - length) * unit < _GROUP:  # the last group needs 16 of its own
            length = count - begin
        numbers = scratch.take(unit * length, dtype)
        step.operation(numbers, *step.args, **step.kwargs)
        yield begin, numbers
        begin += length


def _stream_into(
    step: _Step,
    whole: torch.Tensor,
    dim: int | None,
    held: Sequence[tuple[int, int]],
    out: torch.Tensor,
    scratch: _Scratch,
) -> None:
    """Draw a parameter in order and keep what this rank holds of it."""
    shape = tuple(whole.shape)
    outer = math.prod(shape[:dim]) if dim is not None else 1
    assert step.state is not None
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.set_rng_state(step.state)
        if dim is None:
            flat = out.view(-1)
            for begin, numbers in _chunks(step, whole.dtype, 1, whole.numel(), scratch):
                flat[begin : begin + numbers.numel()].copy_(numbers)
        elif outer == 1:
            unit = math.prod(shape[dim + 1 :])
            rows = out.view(-1, unit)
            for begin, numbers in _chunks(step, whole.dtype, unit, shape[dim], scratch):
                _keep_rows(numbers.view(-1, unit), begin, held, rows)
        else:
            inner = math.prod(shape[dim:])
            rows = out.view(outer, out.shape[dim], -1)
            for begin, numbers in _chunks(step, whole.dtype, inner, outer, scratch):
                block = numbers.view(-1, shape[dim], math.prod(shape[dim + 1 :]))
                _copy_pieces(block, 1, held, rows[begin : begin + block.shape[0]])


def _keep_rows(rows: torch.Tensor, begin: int, held: Sequence[tuple[int, int]], out: torch.Tensor) -> None:
    place = 0
    for offset, length in held:
        first, last = max(offset, begin), min(offset + length, begin + rows.shape[0])
        if first < last:
            out[place + first - offset : place + last - offset].copy_(rows[first - begin : last - begin])
        place += length


def _copy_pieces(whole: torch.Tensor, dim: int | None, held: Sequence[tuple[int, int]], out: torch.Tensor) -> None:
    out.copy_(whole if dim is None else take_pieces(whole, dim, held))
