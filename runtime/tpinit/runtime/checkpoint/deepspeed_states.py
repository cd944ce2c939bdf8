"""The optimizer's states in DeepSpeed's `mp_rank_XX_model_states.pt`: a state dict of torch's form for each rank.

So they are with ZeRO 0 in fp32. It names parameters by their numbers, which are those of `model.parameters()` where the
optimizer has one group; with more groups, only `param_names` of torch's optimizers say whose states they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tpinit.runtime.checkpoint.deepspeed_cuts import TensorCut
from tpinit.runtime.checkpoint.optimizer_states import COUNTERS, CUT, NUMBERS, OptimizerStates, StateGroup
from tpinit.runtime.checkpoint.schedule_states import deepspeed_schedule
from tpinit.runtime.checkpoint.values import encode
from tpinit.runtime.errors import CheckpointError

__all__ = ["deepspeed_states", "state_dict_of"]

Join = Callable[[str, Sequence[torch.Tensor]], torch.Tensor]
_OPTIONS_LEFT_OUT = ("params", "param_names")


class _UnmappedError(Exception):
    """Why states can't be converted: the text says it."""


def deepspeed_states(
    files: Sequence[Mapping[str, Any]], names: Sequence[str], cuts: Mapping[str, TensorCut], join: Join
) -> OptimizerStates | str | None:
    """Return the states in the files of all ranks, why they can't be converted, or None without an optimizer.

    `names` are the parameters in the order of the model; `join(name, parts)` returns the whole of the ranks' parts of a
    tensor that is cut like the parameter `name`. Raises CheckpointError for values that are no states of an optimizer.
    """
    given = [state.get("optimizer") for state in files]
    if all(one is None for one in given):
        return None
    try:
        ranks = [_rank_states(one, names) for one in given]
        groups, numbers, parts = ranks[0]
        for rank, (other, plain, tensors) in enumerate(ranks):
            if _plain(other) != _plain(groups) or plain != numbers or tensors.keys() != parts.keys():
                raise ValueError(f"rank {rank} has other groups, options or numbers than rank 0")
            for (key, name), tensor in tensors.items():
                if tuple(tensor.shape) != cuts[name].local_shape(rank):
                    raise ValueError(f"{key} of {name} has shape {list(tensor.shape)} on rank {rank}")
        counters = {name: _count(files[0].get(name, 0), name) for name in COUNTERS}
    except _UnmappedError as reason:
        return str(reason)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"the optimizer's states in the files can't be read: {why[:300]}") from error
    found: dict[str, list[str]] = {}
    for key, name in parts:
        found.setdefault(name, []).append(key)

    def read(key: str, name: str) -> torch.Tensor:
        return join(name, [tensors[key, name] for _, _, tensors in ranks])

    return OptimizerStates(groups, numbers, found, counters, read, deepspeed_schedule(files))


def _plain(groups: Sequence[StateGroup]) -> list[Any]:
    return [[group.names, encode(dict(group.options), "the optimizer's options")] for group in groups]


def _rank_states(
    given: Any, names: Sequence[str]
) -> tuple[list[StateGroup], dict[str, dict[str, float | None]], dict[tuple[str, str], torch.Tensor]]:
    """Return the groups of one rank, and the numbers and tensors of its states."""
    if not isinstance(given, dict):
        raise ValueError(f"they are a {type(given).__name__}")
    if "state" not in given or "param_groups" not in given:
        shown = ", ".join(sorted(str(key)[:40] for key in given)[:4])
        raise _UnmappedError(f"they have the flat form of DeepSpeed's ZeRO and 16-bit optimizers ({shown})")
    groups, by_number = _groups(given["param_groups"], names)
    numbers: dict[str, dict[str, float | None]] = {}
    tensors: dict[tuple[str, str], torch.Tensor] = {}
    for number, entry in given["state"].items():
        name = by_number[number]
        for key, value in entry.items():
            if key not in (*NUMBERS, *CUT):
                raise _UnmappedError(f"{str(key)[:40]} of {name} is a state that tpinit knows no place for")
            if value is None or key in NUMBERS:
                numbers.setdefault(name, {})[key] = None if value is None else float(value)
            elif not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.is_quantized:
                raise ValueError(f"{key} of {name} is no dense tensor")
            elif value.dtype is not torch.float32 or value.device.type != "cpu":
                raise _UnmappedError(f"{key} of {name} is {value.dtype} on {value.device.type}, and no fp32 values")
            else:
                tensors[key, name] = value
    for group in groups:
        _complete_counts(group, numbers)
    return groups, numbers, tensors


def _complete_counts(group: StateGroup, numbers: Mapping[str, dict[str, float | None]]) -> None:
    """Give every parameter its number of updates: FusedAdam keeps it for one of a group, and 0 for the others.

    Only optimizers of DeepSpeed have the option `bias_correction`.
    """
    if "bias_correction" not in group.options:
        return
    if not group.options["bias_correction"]:
        raise _UnmappedError("they are of an Adam without bias_correction, which torch's Adam and AdamW are not")
    counts = [numbers[name] for name in group.names if numbers.get(name, {}).get("step") is not None]
    most = max((count["step"] or 0 for count in counts), default=0)
    for count in counts:
        count["step"] = count["step"] or most


def _groups(given: Any, names: Sequence[str]) -> tuple[list[StateGroup], dict[int, str]]:
    """Return the groups by the names of their parameters, and the name of each number."""
    named = all("param_names" in group for group in given)
    if not named and (len(given) != 1 or len(given[0]["params"]) != len(names)):
        sizes = ", ".join(str(len(group["params"])) for group in given[:8])
        raise _UnmappedError(
            f"the files do not say whose they are: the optimizer has {len(given)} groups of {sizes} parameters without "
            f"param_names, and the model {len(names)} parameters"
        )
    groups, by_number = [], {}
    for group in given:
        own = tuple(group["param_names"]) if named else tuple(names)
        for number, name in zip(group["params"], own, strict=True):
            if type(number) is not int or number in by_number or name not in names:
                raise ValueError(f"parameter {str(number)[:20]}, {str(name)[:100]}, is unknown or given twice")
            by_number[number] = name
        groups.append(StateGroup(own, {key: group[key] for key in group if key not in _OPTIONS_LEFT_OUT}))
    if len(set(by_number.values())) != len(by_number):
        raise ValueError("a parameter is in two groups")
    return groups, by_number


def _count(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{name} is {str(value)[:50]}")
    return value


def state_dict_of(states: OptimizerStates, part: Callable[[torch.Tensor, str], torch.Tensor]) -> dict[str, Any]:
    """Return the state dict of one rank. `part(whole, name)` returns its part of a tensor that is cut like `name`."""
    numbers = {name: number for number, name in enumerate(name for group in states.groups for name in group.names)}
    state: dict[int, dict[str, Any]] = {}
    for name, number in numbers.items():
        plain: dict[str, Any] = {
            key: value if value is None or value % 1 else int(value)
            for key, value in states.numbers.get(name, {}).items()
        }
        tensors = {key: part(states.read(key, name), name) for key in states.tensors.get(name, ())}
        if plain or tensors:
            state[number] = plain | tensors
    groups = [
        {**group.options, "params": [numbers[name] for name in group.names], "param_names": list(group.names)}
        for group in states.groups
    ]
    return {"state": state, "param_groups": groups}
