"""A checkpoint of ours, written without ranks, one tensor at a time: a model, and states of its optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tpinit.runtime.checkpoint.dcp_writer import write_chunks
from tpinit.runtime.checkpoint.model_tensors import ModelTensors, TensorSpec
from tpinit.runtime.checkpoint.optimizer_states import FOREIGN, NUMBERS, OptimizerStates
from tpinit.runtime.checkpoint.places import Box, Write
from tpinit.runtime.checkpoint.save import write_manifest
from tpinit.runtime.checkpoint.values import encode

__all__ = ["write_checkpoint"]

_NUMBER = TensorSpec(torch.float32, ())


def write_checkpoint(
    source: ModelTensors,
    specs: Mapping[str, TensorSpec],
    masters: Mapping[str, TensorSpec],
    folder: Path,
    origin: str,
    states: OptimizerStates | None = None,
) -> list[str]:
    """Write the tensors in the dtypes of `specs`, and fp32 `masters` of some; return the names of the files.

    `origin` is where they come from, for the reader of the manifest. `load_checkpoint` loads it, without `states` with
    `load_module_only=True`. Needs memory for one tensor and its copy in another dtype.
    """
    wanted = {f"model.{name}": spec for name, spec in specs.items()}
    wanted |= {f"master.{name}": spec for name, spec in masters.items()}
    for name, values in states.numbers.items() if states is not None else ():
        wanted |= {f"optimizer.{key}.{name}": _NUMBER for key, value in values.items() if value is not None}
    for name, keys in states.tensors.items() if states is not None else ():
        wanted |= {f"optimizer.{key}.{name}": TensorSpec(torch.float32, specs[name].shape) for key in keys}
    writes = [
        Write(
            name,
            spec.shape,
            Box((0,) * len(spec.shape), spec.shape),
            torch.empty(spec.shape, dtype=spec.dtype, device="meta"),
        )
        for name, spec in wanted.items()
    ]

    def read(write: Write) -> torch.Tensor:
        kind, _, name = write.name.partition(".")
        if states is None or kind != "optimizer":
            return source.read(name).to(write.values.dtype)
        key, _, name = name.partition(".")
        return torch.tensor(states.numbers[name][key]) if key in NUMBERS else states.read(key, name)

    file = write_chunks(folder, 0, writes, read)
    page = {
        "weights_only": states is None,
        "origin": origin,
        "topology": {"tp_size": 1, "replicas": 1},
        "excluded": [],
        "client_state": encode({}, "client_state"),
    }
    if states is not None:
        page |= _run_page(states)
    write_manifest([file] if file is not None else [], page, folder)
    return sorted(path.name for path in folder.iterdir())


def _run_page(states: OptimizerStates) -> dict[str, Any]:
    """Return what a run goes on with: the counters, the schedule, and the optimizer's groups and values."""
    values = {name: {key: one for key, one in plain.items() if one is None} for name, plain in states.numbers.items()}
    groups = [
        {"parameters": list(group.names), "options": encode(dict(group.options), "the optimizer's options")}
        for group in states.groups
    ]
    schedule = None
    if states.schedule is not None:
        schedule = {"class": FOREIGN, "state": encode(states.schedule, "the schedule's state")}
    return {
        "converted": True,
        "counters": {**states.counters, "micro_steps": states.counters["global_steps"]},
        "scheduler": schedule,
        "optimizer": {
            "class": FOREIGN,
            "groups": groups,
            "values": {name: encode(plain, f"the optimizer's state of {name}") for name, plain in values.items()},
        },
    }
