"""Try an unknown optimizer on small tensors before training: on whole ones, on their slices, and on gathered ones.

The optimizer is built anew by its class and its options. It makes `STEPS` updates of tensors that have a row or a
column of other magnitude everywhere, so that a norm over a slice differs from a norm over the whole.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from tpinit.runtime.errors import UnsupportedError
from tpinit.runtime.parallel.device_rng import preserved_torch_rng, seed_torch

__all__ = ["STEPS", "substituted", "try_optimizer"]

STEPS = 12  # more than the interval at which common optimizers refresh a preconditioner or a slow copy
# Sizes above the thresholds under which some optimizers do not factor (128) or quantize (4096) a tensor.
_SHAPES = {1: (8201,), 2: (261, 137), 3: (5, 131, 33), 4: (7, 9, 5, 65)}
_RATE = 0.05  # the learning rate of a trial: the given one may be zero, or too small for a difference to be seen
_TOLERANCE = 1e-4  # relative to how far a tensor's weights moved: vectorized and scalar instructions differ by less
_LEAST_MOVE = 1e-3  # relative to the greatest weight: below it a trial shows nothing

Tensors = list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Copy:
    """How to build an optimizer anew: its class, the constructor's arguments, and the options and sizes of each group.

    `faithful` is false if the constructor has options whose values the given optimizer does not show.
    """

    make: Callable[..., Optimizer]
    arguments: Mapping[str, Any]
    groups: Sequence[Mapping[str, Any]]
    dims: Sequence[tuple[int, ...]]
    faithful: bool

    def build(self, parameters: Sequence[nn.Parameter]) -> Optimizer:
        """Return a new optimizer over the parameters, which are given in the order of the groups."""
        rest = iter(parameters)
        groups = [
            {**_with_rate(options), "params": [next(rest) for _ in dims]}
            for options, dims in zip(self.groups, self.dims, strict=True)
        ]
        return self.make(groups, **_with_rate(self.arguments))


def _with_rate(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the options with the learning rate of the trial, if they have one."""
    copied = copy.deepcopy(dict(options))
    if isinstance(copied.get("lr"), torch.Tensor):
        copied["lr"] = torch.full_like(copied["lr"], _RATE)
    elif copied.get("lr") is not None:
        copied["lr"] = _RATE
    return copied


def try_optimizer(optimizer: Optimizer, name: str) -> bool:
    """Return true if the optimizer's update is elementwise, false if it is exact on whole tensors only.

    `name` is the class's name for errors. Raises UnsupportedError if the optimizer can't be built anew from its
    options, if it fails on small tensors or makes them NaN, if two runs on equal tensors differ (it draws random
    numbers), or if it does not work when its parameters are replaced during a step (it keeps tensors that are not in
    its groups).
    """
    errors = []
    for device in _devices(optimizer):
        answer = _attempt(optimizer, name, device)
        if isinstance(answer, bool):
            return answer
        errors.append(f"on {device}: {type(answer).__name__}: {answer}")
    raise UnsupportedError(
        f"the optimizer {name} is not known, and a trial of it on small tensors failed ({'; '.join(errors)}): use an "
        "optimizer of docs/optimizers.md, or give one that its class builds from its parameters and options"
    )


def _attempt(optimizer: Optimizer, name: str, device: torch.device) -> bool | Exception:
    """Return the answer of a trial on one device, or the error that the optimizer's own code raised there."""
    try:
        with preserved_torch_rng(device):
            return _try_on(_copy_of(optimizer, name), name, device)
    except UnsupportedError:
        raise
    except Exception as error:  # any error: the optimizer is unknown code
        return error


def _devices(optimizer: Optimizer) -> list[torch.device]:
    """Return where to try: where the parameters are, and on the GPU if there is one (some optimizers need it)."""
    devices = [parameter.device for group in optimizer.param_groups for parameter in group["params"]][:1]
    devices = [device if device.type != "meta" else torch.device("cpu") for device in devices]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda", torch.cuda.current_device()))
    return list(dict.fromkeys(devices))


def _copy_of(optimizer: Optimizer, name: str) -> _Copy:
    """Return how to build the optimizer anew. Raises UnsupportedError if an argument has no known value."""
    names = list(inspect.signature(type(optimizer)).parameters.values())[1:]
    known = {**vars(optimizer), **optimizer.defaults}
    arguments, hidden, missing = {}, False, []
    for parameter in names:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        values = [known[key] for key in (parameter.name, f"_{parameter.name}") if key in known]
        if values:
            arguments[parameter.name] = values[0]
        elif any(parameter.name not in group for group in optimizer.param_groups):
            hidden = True
            if parameter.default is parameter.empty:
                missing.append(parameter.name)
    if missing:
        raise UnsupportedError(
            f"the optimizer {name} is not known, and can't be built anew for a trial: its constructor needs "
            f"{', '.join(missing)}, which neither its defaults nor its attributes hold: keep them as attributes of the "
            "same name, or use an optimizer of docs/optimizers.md"
        )
    groups, dims = [], []
    for group in optimizer.param_groups:
        options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        counts = tuple(sorted({min(parameter.ndim, 4) for parameter in group["params"] if parameter.ndim}))
        if counts:
            groups.append(options)
            dims.append(counts)
    return _Copy(type(optimizer), arguments, groups, dims, not hidden)


def _try_on(copied: _Copy, name: str, device: torch.device) -> bool:
    shapes = [_SHAPES[dims] for group in copied.dims for dims in group]
    start = [_drawn(shape, 100 + seed, device) for seed, shape in enumerate(shapes)]
    gradients = [_gradients(shapes, step, device) for step in range(STEPS)]
    whole, _ = _run(copied, start, gradients)
    if not all(bool(torch.isfinite(one).all()) for one in whole):
        raise UnsupportedError(
            f"the optimizer {name} is not known, and a trial of it on small tensors gave weights that are NaN or "
            "infinite, so whether slices are updated as whole tensors are can't be seen: one of the updates has "
            "gradients of zero, by whose norm it may divide (add an epsilon). Or use an optimizer of docs/optimizers.md"
        )
    with _other_random_state(device):
        again, _ = _run(copied, start, gradients)
    if not _equal(whole, again):
        raise UnsupportedError(
            f"the optimizer {name} updates equal weights by equal gradients in two ways: it draws random numbers, "
            "which would differ between the ranks. Use an optimizer that does not"
        )
    if copied.faithful and _is_elementwise(copied, start, gradients, whole):
        return True
    replaced, _ = _run(copied, start, gradients, replace=True)
    if not _equal(whole, replaced):
        raise UnsupportedError(
            f"the optimizer {name} is not elementwise, and is wrong on whole tensors that are gathered for each "
            "update: it keeps tensors that are not in its param_groups. Use an optimizer of docs/optimizers.md"
        )
    return False


def _is_elementwise(copied: _Copy, start: Tensors, gradients: Sequence[Tensors], whole: Tensors) -> bool:
    """Return whether the update of slices is the slices of the update, for an uneven cut along each dimension."""
    for axis in range(max(tensor.ndim for tensor in start)):
        for rank in (0, 1):
            from_slices = _slices(start, axis, rank)
            sliced, plain_state = _run(copied, from_slices, [_slices(step, axis, rank) for step in gradients])
            if not plain_state or not _moved_alike(from_slices, _slices(whole, axis, rank), sliced):
                return False
    return True


def _slices(tensors: Tensors, axis: int, rank: int) -> Tensors:
    """Return one of two uneven parts of each tensor, along `axis` or its last dimension."""
    found = []
    for tensor in tensors:
        dim = min(axis, tensor.ndim - 1)
        first = (tensor.shape[dim] + 2) // 3
        found.append(
            tensor.narrow(dim, 0, first) if rank == 0 else tensor.narrow(dim, first, tensor.shape[dim] - first)
        )
    return [tensor.contiguous() for tensor in found]


def _run(copied: _Copy, start: Tensors, gradients: Sequence[Tensors], replace: bool = False) -> tuple[Tensors, bool]:
    """Return the weights after all updates, and whether each tensor of the state is a scalar or as large as its weight.

    `replace` puts other parameters in the optimizer's groups for each update, as the update of gathered tensors does.
    """
    parameters = [nn.Parameter(tensor.clone()) for tensor in start]
    optimizer = copied.build(parameters)
    for step in gradients:
        if replace:
            _replaced_step(optimizer, parameters, step)
            continue
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    plain = all(
        value.numel() == 1 or value.shape == key.shape
        for key, state in optimizer.state.items()
        if isinstance(key, torch.Tensor)
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    return [parameter.detach() for parameter in parameters], plain


def _replaced_step(optimizer: Optimizer, parameters: Sequence[nn.Parameter], gradients: Tensors) -> None:
    others = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    for other, gradient in zip(others, gradients, strict=True):
        other.grad = gradient.clone()
    with substituted(optimizer, {id(one): other for one, other in zip(parameters, others, strict=True)}):
        optimizer.step()
    with torch.no_grad():
        for parameter, other in zip(parameters, others, strict=True):
            parameter.copy_(other)


@contextmanager
def substituted(optimizer: Optimizer, others: Mapping[int, nn.Parameter]) -> Iterator[None]:
    """Put other parameters, by the id of the present ones, in the optimizer's groups and state; put them back after."""
    before = [list(group["params"]) for group in optimizer.param_groups]
    pairs = [(one, others[id(one)]) for group in before for one in group if id(one) in others]
    for group in optimizer.param_groups:
        group["params"][:] = [others.get(id(one), one) for one in group["params"]]
    for one, other in pairs:
        if one in optimizer.state:
            optimizer.state[other] = optimizer.state.pop(one)
    try:
        yield
    finally:
        for group, parameters in zip(optimizer.param_groups, before, strict=True):
            group["params"][:] = parameters
        for one, other in pairs:
            if other in optimizer.state:
                optimizer.state[one] = optimizer.state.pop(other)


def _drawn(shape: tuple[int, ...], seed: int, device: torch.device) -> torch.Tensor:
    """Return a tensor of normal numbers whose magnitude changes along every dimension by a factor of about 10."""
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for dim, length in enumerate(shape):
        steps = torch.logspace(-0.5, 0.5, length)
        tensor *= steps.view([-1 if dim == other else 1 for other in range(len(shape))])
    return tensor.to(device)


def _gradients(shapes: Sequence[tuple[int, ...]], step: int, device: torch.device) -> Tensors:
    """Return the gradients of one update: mostly drawn; in the fourth zero everywhere, in the sixth in half of each."""
    drawn = [_drawn(shape, 1000 * (step + 1) + seed, device) for seed, shape in enumerate(shapes)]
    if step == 3:
        return [torch.zeros_like(tensor) for tensor in drawn]
    if step == 5:
        for tensor in drawn:
            tensor[: len(tensor) // 3] = 0
    return drawn


@contextmanager
def _other_random_state(device: torch.device) -> Iterator[None]:
    """Run with another state of torch's default generators of the CPU and this device, and put it back."""
    with preserved_torch_rng(device):
        seed_torch(7, device)
        yield


def _equal(expected: Tensors, given: Tensors) -> bool:
    return all(torch.equal(one, other) for one, other in zip(expected, given, strict=True))


def _moved_alike(start: Tensors, expected: Tensors, given: Tensors) -> bool:
    """Return whether the weights moved, and by the same in both runs but for rounding."""
    for before, one, other in zip(start, expected, given, strict=True):
        greatest, move = float(one.abs().max()), float((one - before).abs().max())
        rounding = 8 * torch.finfo(one.dtype).eps * greatest
        if move < _LEAST_MOVE * greatest or float((one - other).abs().max()) > _TOLERANCE * move + rounding:
            return False
    return True
