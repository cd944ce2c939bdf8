"""The states of an optimizer for another layout of files: whole tensors, one at a time, by the names of parameters.

Those of Adam, AdamW and SGD are converted: each of their tensors has the shape of its parameter, and is cut like it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tpinit.runtime.checkpoint.load import Opened
from tpinit.runtime.checkpoint.manifest import ChunkedTensor
from tpinit.runtime.checkpoint.schedule_states import counts_iterations, stored_schedule
from tpinit.runtime.checkpoint.values import decode
from tpinit.runtime.errors import CheckpointError

__all__ = ["COUNTERS", "CUT", "FOREIGN", "NUMBERS", "OptimizerStates", "StateGroup", "stored_states", "unfit_weights"]

CUT = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
"""The tensors of a state, which are cut like the parameter."""
NUMBERS = ("step",)
"""The numbers of a state."""
COUNTERS = ("global_steps", "skipped_steps", "global_samples")
"""The counters of a run that DeepSpeed's files have too."""
FOREIGN = "DeepSpeed"
"""What a converted checkpoint has in place of the optimizer's class, which DeepSpeed's files do not name."""
_CLASSES = {f"torch.optim.{name.lower()}.{name}" for name in ("Adam", "AdamW", "SGD")}


@dataclass(frozen=True, slots=True)
class StateGroup:
    """The names of the parameters in one group of the optimizer, and its options."""

    names: tuple[str, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OptimizerStates:
    """The states of an optimizer that is one of `Adam`, `AdamW` and `SGD`, and the counters and schedule of its run.

    `numbers[name]` are the plain values of a parameter's state by their keys, `tensors[name]` the keys of its tensors:
    fp32, whole, of the parameter's shape, and read by `read(key, name)`. `schedule` is the state of the learning-rate
    schedule, why it is left out, or None without one.
    """

    groups: Sequence[StateGroup]
    numbers: Mapping[str, Mapping[str, float | None]]
    tensors: Mapping[str, Sequence[str]]
    counters: Mapping[str, int]
    read: Callable[[str, str], torch.Tensor]
    schedule: Mapping[str, Any] | str | None = None


def stored_states(opened: Opened, read: Callable[[str], torch.Tensor]) -> OptimizerStates | str | None:
    """Return the states in a checkpoint of ours, why they can't be converted, or None without an optimizer.

    `read` returns a tensor of the checkpoint by its name there. Raises CheckpointError for a damaged manifest.
    """
    stored, page = opened.manifest.tensors, opened.manifest.page.get("optimizer")
    if page is None:
        return None
    schedule = stored_schedule(opened.manifest.page.get("scheduler"))
    # Under a schedule like DeepSpeed's this is no rate, but a 1 for torch's LambdaLR.
    left_out = ("initial_lr",) if isinstance(schedule, dict) and counts_iterations(schedule) else ()
    try:
        if page["class"] not in {*_CLASSES, FOREIGN}:
            return f"they are of a {page['class']}, and those of {', '.join(sorted(_CLASSES))} have a form there"
        groups = [
            StateGroup(
                tuple(group["parameters"]),
                {key: value for key, value in decode(group["options"]).items() if key not in left_out},
            )
            for group in page["groups"]
        ]
        numbers = {name: dict(decode(values)) for name, values in page["values"].items()}
        counters = {name: int(opened.manifest.page["counters"][name]) for name in COUNTERS}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{opened.folder}: the optimizer's page can't be read: {str(error)[:200]}") from error
    tensors: dict[str, list[str]] = {}
    for full in sorted(name for name in stored if name.startswith("optimizer.")):
        _, key, name = full.split(".", 2)
        if key in NUMBERS and math.prod(stored[full].shape) == 1:
            numbers.setdefault(name, {})[key] = float(read(full))
        elif key in CUT and stored[full].dtype is torch.float32 and stored[full].shape == _shape(stored, name):
            tensors.setdefault(name, []).append(key)
        else:
            return f"{full}, {list(stored[full].shape)} of {stored[full].dtype}, is a state that no other layout has"
    unknown = {key for values in numbers.values() for key in values} - {*NUMBERS, *CUT}
    if unknown:
        return f"{sorted(unknown)[0]} is a state that no other layout has"
    return OptimizerStates(
        groups, numbers, tensors, counters, lambda key, name: read(f"optimizer.{key}.{name}"), schedule
    )


def _shape(stored: Mapping[str, ChunkedTensor], name: str) -> tuple[int, ...] | None:
    parameter = stored.get(f"model.{name}")
    return parameter.shape if parameter is not None else None


def unfit_weights(
    states: OptimizerStates, read: Mapping[str, torch.dtype], written: Mapping[str, torch.dtype] | None
) -> str | None:
    """Return why states do not fit the weights that they are written with; None if they do.

    `read` are the dtypes of the parameters in the source, `written` those in the files that have no fp32 copies.
    """
    names = [name for group in states.groups for name in group.names]
    for name in (*names, *states.numbers, *states.tensors):
        if name not in read:
            raise CheckpointError(f"the optimizer has a state of {str(name)[:100]}, which is no parameter in the files")
        dtype = read[name] if read[name] is not torch.float32 or written is None else written[name]
        if dtype is not torch.float32:
            return (
                f"they belong to fp32 weights, and {name} is {str(dtype).removeprefix('torch.')} (from a checkpoint of "
                "tpinit --masters takes the fp32 copies)"
            )
    return None
