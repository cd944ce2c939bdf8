"""One job on one rank: make its groups, run its steps, and record the result of every step."""

from __future__ import annotations

import base64
import copy
import json
import re
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import FileStore
from tpinit.conformance.adapters.deepspeed.ranks import observe
from tpinit.conformance.adapters.deepspeed.ranks.implementations import TrainingLibrary
from tpinit.conformance.adapters.deepspeed.ranks.model import LEARNING_RATE, Dense

__all__ = ["RankState", "run_job"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}
_PATH = re.compile(r"(?:/[^\s'\"(),:]+)+/(?=[^/\s'\"]+)")


class MpuObject:
    """A model-parallel unit with DeepSpeed's six methods for two groups; `megatron` selects Megatron's names."""

    def __init__(self, tp: Any, dp: Any, megatron: bool = False) -> None:
        side = "tensor_model_parallel" if megatron else "model_parallel"
        for name, group in ((side, tp), ("data_parallel", dp)):
            setattr(self, f"get_{name}_group", lambda group=group: group)
            setattr(self, f"get_{name}_rank", lambda group=group: dist.get_rank(group))
            setattr(self, f"get_{name}_world_size", lambda group=group: dist.get_world_size(group))


@dataclass
class RankState:
    """The state of one rank during one job: its objects by name, and the report that it writes."""

    implementation: TrainingLibrary
    template: nn.Module
    rank: int
    world: int
    home: Path
    groups: dict[str, Any] = field(default_factory=dict)
    configs: dict[str, Any] = field(default_factory=dict)
    meshes: dict[str, Any] = field(default_factory=dict)
    models: dict[str, nn.Module] = field(default_factory=dict)
    engines: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)

    def model(self, name: str) -> nn.Module:
        """Return the model with this name: a copy of the template, made on first use."""
        if name not in self.models:
            self.models[name] = copy.deepcopy(self.template)
        return self.models[name]

    def value(self, given: Any) -> Any:
        """Convert JSON to the arguments of a user: `$group`, `$dtype`, `$tuple` and `$text` become objects."""
        if isinstance(given, Mapping):
            if "$group" in given:
                return self.groups[given["$group"]]
            if "$dtype" in given:
                return _DTYPES[given["$dtype"]]
            if "$tuple" in given:
                return tuple(given["$tuple"])
            if "$text" in given:
                return base64.urlsafe_b64encode(json.dumps(given["$text"]).encode()).decode()
            return {key: self.value(inner) for key, inner in given.items()}
        return [self.value(inner) for inner in given] if isinstance(given, list) else given


def run_job(job: Mapping[str, Any], state: RankState) -> None:
    """Run the steps of a job and write the report to a file. Stops after a step that failed on some ranks only."""
    for handle, partition in job["groups"].items():
        if isinstance(partition, Mapping):
            shape = (state.world // partition["mesh"], partition["mesh"])
            state.meshes[handle] = _mesh(state, {"shape": shape, "names": ("dp", "tp")})
            state.groups[handle] = state.meshes[handle].get_group("tp")
            continue
        made = [(ranks, dist.new_group(ranks)) for ranks in partition]
        state.groups[handle] = next(
            (group for ranks, group in made if state.rank in ranks), dist.GroupMember.NON_GROUP_MEMBER
        )
    state.configs = {name: state.value(config) for name, config in job["configs"].items()}
    store = FileStore(str(state.home / "agree"), state.world)
    for number, step in enumerate(job["steps"]):
        note: dict[str, Any] = {key: step[key] for key in ("op", "model", "what") if key in step}
        state.steps.append(note)
        _write(state)
        begun = time.monotonic()
        try:
            note.update(_OPERATIONS[step["op"]](state, step))
            note["ok"] = True
        except Exception as error:
            note.update(ok=False, error=_error_report(error))
        note["seconds"] = round(time.monotonic() - begun, 2)
        _write(state)
        store.set(f"{number}.{state.rank}", "1" if note["ok"] else "0")
        if len({store.get(f"{number}.{rank}") for rank in range(state.world)}) > 1:
            note["disagree"] = True
            break
        if not note["ok"] and step["op"] != "observe" and not job.get("goes_on"):
            break  # as an exception ends the user's program
    _write(state, done=True)


def _write(state: RankState, done: bool = False) -> None:
    partial = state.home / f"report.{state.rank}.partial"
    partial.write_text(json.dumps({"steps": state.steps, "done": done}, default=str), encoding="utf-8")
    partial.rename(state.home / f"report.{state.rank}.json")


def _error_report(error: BaseException) -> dict[str, Any]:
    """Return an error as plain data: its type, its text without folders, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{'/'.join(Path(frames[-1].filename).parts[-2:])}:{frames[-1].name}" if frames else ""
    report: dict[str, Any] = {
        "type": type(error).__qualname__,
        "message": _PATH.sub("", str(error))[:1500],
        "where": where,
    }
    decision = getattr(error, "decision", None)
    if decision is not None:
        report["codes"] = [violation.code.value for violation in decision.violations]
    elif isinstance(getattr(error, "code", None), str):
        report["codes"] = [error.code]  # type: ignore[attr-defined] # the line above checks it
    return report


def _call(state: RankState, step: Mapping[str, Any]) -> dict[str, Any]:
    model = state.model(step["model"])
    group = {} if step.get("tp_group") is None else {"tp_group": state.value(step["tp_group"])}
    returned = state.implementation.tp_model_init(
        model, tp_size=state.value(step["tp_size"]), dtype=state.value(step["dtype"]), **group
    )
    state.models[step["model"]] = returned
    return {"same_model": returned is model}


def _initialize(state: RankState, step: Mapping[str, Any]) -> dict[str, Any]:
    model = state.model(step["model"])
    config = state.configs[step["config"]]
    arguments: dict[str, Any] = {"model": model, "config": config}
    arguments["optimizer"] = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    if step.get("mpu") is not None:
        mpu = step["mpu"]
        arguments["mpu"] = MpuObject(state.groups[mpu["tp"]], state.groups[mpu["dp"]], bool(mpu.get("megatron")))
    if step.get("mesh") is not None:
        arguments["mesh_param"] = _mesh(state, step["mesh"])
    before = _flat(config)
    note: dict[str, Any] = {}
    try:
        engine = state.implementation.initialize(**arguments)
        state.engines[step["model"]] = engine
        state.checks[step["model"]] = state.implementation.input_check(engine)
        note["claims"] = state.implementation.claims(engine)
        note["shards"] = observe.shards(engine.module, dict(state.template.named_parameters()))
        note["trained_by_optimizer"] = _optimized_parameters(engine)
    finally:
        after = _flat(config)
        changed = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
        state.steps[-1]["config_changed"] = {path: after.get(path, "gone") for path in changed}
    return note


def _mesh(state: RankState, given: Any) -> Any:
    """Return a DeviceMesh for {"shape", "names"} or {"of_group"}, and any other value as it is (DeepSpeed's tuple)."""
    if isinstance(given, Mapping) and "of_group" in given:
        return state.meshes[given["of_group"]]
    if isinstance(given, Mapping) and "shape" in given:
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh("cpu", tuple(given["shape"]), mesh_dim_names=tuple(given["names"]))
    return state.value(given)


def _optimized_parameters(engine: Any) -> int:
    optimizer = engine.optimizer
    return sum(len(group["params"]) for group in optimizer.param_groups) if optimizer is not None else 0


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Return a config as {path: repr of the value}, so that two of them show any change of a key or a value."""
    if isinstance(value, dict):
        flat = {path: "{}"} if not value else {}
        for key, inner in value.items():
            flat.update(_flat(inner, f"{path}.{key}" if path else str(key)))
        return flat
    return {path: f"a {type(value).__name__}" if isinstance(value, dist.ProcessGroup) else repr(value)}


def _observe(state: RankState, step: Mapping[str, Any]) -> dict[str, Any]:
    engine = state.engines.get(step["model"])
    if engine is None:
        return {"skipped": "no engine"}
    if step["what"] == "numbers":
        dense = Dense(state.template)
        return observe.numbers(engine, dense, step["data"], state.rank, step["positions"][state.rank])
    if step["what"] == "sharding":
        return {"group": observe.sharding_group(engine, state.world, state.rank)}
    if step["what"] == "averaging":
        return observe.averaging_group(engine, state.world, state.rank, state.implementation)
    check = state.checks[step["model"]]
    return {"group": observe.check_group(check, state.world, state.rank) if check is not None else None}


def _keep(state: RankState, step: Mapping[str, Any]) -> dict[str, Any]:
    """Record the present content of a config object."""
    return {"config": _flat(state.configs[step["config"]])}


_OPERATIONS: dict[str, Callable[[RankState, Mapping[str, Any]], dict[str, Any]]] = {
    "call": _call,
    "initialize": _initialize,
    "observe": _observe,
    "look": _keep,
}
