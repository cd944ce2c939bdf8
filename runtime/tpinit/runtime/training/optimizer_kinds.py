"""How an optimizer updates a sharded model exactly: on slices if its update is elementwise, else on whole tensors.

An elementwise update computes each new element from that element, its gradient, its state and scalars, so that a slice
of the updated tensor is the update of the slice. Torch's own elementwise classes are listed here, with every option
that they have. Muon orthogonalizes a matrix, Adafactor and LAMB take norms over one: these need the whole tensors. A
class that is not listed, subclasses too, is tried (`optimizer_trial`).
"""

from __future__ import annotations

import inspect
from enum import Enum

import torch
from torch import optim
from torch.optim import Optimizer
from tpinit.runtime.errors import UnsupportedError
from tpinit.runtime.training.config_optimizers import Lion, UncorrectedAdam
from tpinit.runtime.training.optimizer_trial import try_optimizer

__all__ = [
    "ELEMENTWISE",
    "REFUSED",
    "WHOLE_TENSORS",
    "OptimizerKind",
    "class_name",
    "classify",
    "group_options",
    "updates_each_alone",
]


class OptimizerKind(str, Enum):
    """What the optimizer of a sharded model needs.

    `elementwise`: nothing, each rank updates its slices. `whole tensors`: at each update the ranks of a TP group
    gather every sharded weight and gradient, update whole tensors, and keep their slices.
    """

    ELEMENTWISE = "elementwise"
    WHOLE_TENSORS = "whole tensors"


ELEMENTWISE: tuple[type[Optimizer], ...] = (
    optim.SGD, optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam, optim.RAdam, optim.Adagrad, optim.Adadelta,
    optim.RMSprop, optim.Rprop, optim.ASGD, Lion, UncorrectedAdam,
)  # fmt: skip
"""Classes whose update is elementwise with each of their options. Subclasses are not among them."""

WHOLE_TENSORS: tuple[str, ...] = (
    "torch.optim._muon.Muon",
    "torch.optim._adafactor.Adafactor",
    "transformers.optimization.Adafactor",
    "tpinit.runtime.training.config_optimizers.MuonAdamW",
)
"""Classes whose update of one element depends on others, by their full names: some are in optional packages."""

REFUSED: dict[str, str] = {
    "torch.optim.lbfgs.LBFGS": "it runs the model several times in one step",
    "torch.optim.sparse_adam.SparseAdam": "it takes sparse gradients only, and those of a sharded model are dense",
}
"""Classes that can't update a sharded model, by their full names, and why."""


def classify(optimizer: Optimizer) -> OptimizerKind:
    """Return what this optimizer needs in order to update a sharded model exactly.

    Raises UnsupportedError if it is one of `REFUSED`, if its `step` needs arguments, or if the trial of a class that is
    not listed fails.
    """
    name = class_name(optimizer)
    if name in REFUSED:
        raise UnsupportedError(
            f"the optimizer {name} can't update a sharded model, because {REFUSED[name]}: use AdamW, SGD, Adafactor, "
            "Muon or another optimizer of docs/optimizers.md"
        )
    if type(optimizer) in ELEMENTWISE:
        return OptimizerKind.ELEMENTWISE
    if name in WHOLE_TENSORS:
        return OptimizerKind.WHOLE_TENSORS
    _check_step(optimizer, name)
    return OptimizerKind.ELEMENTWISE if try_optimizer(optimizer, name) else OptimizerKind.WHOLE_TENSORS


def updates_each_alone(optimizer: Optimizer) -> bool:
    """Return whether the update of a parameter is known to depend on no other parameter."""
    return type(optimizer) in ELEMENTWISE or class_name(optimizer) in WHOLE_TENSORS


def class_name(value: object) -> str:
    """Return the full name of the class of an optimizer or a schedule: its module and its qualified name."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def group_options(optimizer: Optimizer) -> dict[str, object]:
    """Return the plain options of each group of parameters (learning rate, betas, ...) by the names that errors show.

    Tensors on an accelerator are left out: the host would wait for them.
    """
    found: dict[str, object] = {}
    for place, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            plain = value.tolist() if isinstance(value, torch.Tensor) and value.device.type == "cpu" else value
            if key != "params" and isinstance(plain, (bool, int, float, str, list, tuple)):
                found[f"{key} of group {place} of the optimizer"] = plain
    return found


def _check_step(optimizer: Optimizer, name: str) -> None:
    """Raise UnsupportedError unless `step` can be called without arguments."""
    needed = [
        parameter.name
        for parameter in inspect.signature(optimizer.step).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise UnsupportedError(
            f"the step of the optimizer {name} needs {', '.join(needed)}, and the engine calls step() without "
            "arguments: use an optimizer whose step needs none"
        )
