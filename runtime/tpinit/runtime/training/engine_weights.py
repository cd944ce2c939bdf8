"""Methods of the engine that give, write and load the weights of the whole model, with DeepSpeed's names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from tpinit.runtime.checkpoint.folders import check_tag, sync_folder, write_archive
from tpinit.runtime.checkpoint.ranks import agree
from tpinit.runtime.errors import CheckpointError, EngineError
from tpinit.runtime.groups.agreement import RankReport
from tpinit.runtime.training.whole_model import gather_parameter, records_below

if TYPE_CHECKING:
    from tpinit.runtime.training.engine import Engine

__all__ = ["consolidated_state_dict", "load_module_state_dict", "module_state_dict", "save_16bit_model"]


def consolidated_state_dict(engine: Engine, exclude_frozen_parameters: bool = False) -> dict[str, torch.Tensor] | None:
    """Return the state dict of the whole model on rank 0, in its own dtype and on the CPU; None on other ranks.

    Every rank must call this. Rank 0 needs host memory for the model, each rank memory for one whole parameter.
    """
    engine._call_check.compare_call("_consolidated_16bit_state_dict", engine.module)
    model, tp, is_first = engine.module, engine.groups.tp, dist.get_rank() == 0
    records = records_below(engine.plan, "")
    if 0 not in tp.ranks:
        return None
    found: dict[str, torch.Tensor] = {}
    copies: dict[int, torch.Tensor] = {}  # of tied parameters one
    for name, value in nn.Module.state_dict(model, keep_vars=True).items():
        if not isinstance(value, torch.Tensor):
            continue
        if exclude_frozen_parameters and isinstance(value, nn.Parameter) and not value.requires_grad:
            continue
        if id(value) not in copies:
            whole = gather_parameter(value, records[name], tp) if name in records else value.detach()
            copies[id(value)] = whole.to("cpu", copy=True) if is_first else whole.new_empty(0)
        found[name] = copies[id(value)]
    return found if is_first else None


def module_state_dict(
    engine: Engine,
    destination: dict[str, Any] | None = None,
    prefix: str = "",
    keep_vars: bool = False,
    exclude_frozen_parameters: bool = False,
) -> dict[str, Any]:
    """Return the model's state dict: this rank's part of each sharded parameter."""
    given = {} if destination is None else {"destination": destination}
    state: dict[str, Any] = engine.module.state_dict(**given, prefix=prefix, keep_vars=keep_vars)
    if exclude_frozen_parameters:
        for name, parameter in engine.module.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad:
                state.pop(prefix + name, None)
    return state


def load_module_state_dict(
    engine: Engine,
    checkpoint: Mapping[str, Any],
    strict: bool = True,
    custom_load_fn: Callable[..., Any] | None = None,
) -> None:
    """Load a state dict of the model, whole or this rank's part, or a mapping that has one under "module".

    The fp32 master copies follow at the next update. `custom_load_fn(src=state dict, dst=engine.module)` replaces the
    loading.
    """
    state = checkpoint.get("module", checkpoint)
    if not isinstance(state, Mapping):
        raise EngineError(f"load_module_state_dict: a {type(state).__name__} is not a state dict")
    if custom_load_fn is not None:
        custom_load_fn(src=state, dst=engine.module)
    else:
        engine.module.load_state_dict(state, strict=strict)


def save_16bit_model(
    engine: Engine,
    save_dir: str | os.PathLike[str],
    save_filename: str = "pytorch_model.bin",
    exclude_frozen_parameters: bool = False,
) -> bool:
    """Write the state dict of the whole model as one file of torch.save, or of safetensors by its ending.

    Every rank must call this; rank 0 writes, and needs host memory for the model. Returns True. Raises CheckpointError
    on all ranks if the file can't be written; one of that name is then as it was.
    """
    state = consolidated_state_dict(engine, exclude_frozen_parameters)

    def write(_: RankReport) -> None:
        if state is not None:
            try:
                _write(Path(save_dir), check_tag(save_filename), state)
            except (OSError, RuntimeError, CheckpointError) as failure:
                raise CheckpointError(f"{Path(save_dir) / save_filename} could not be written: {failure}") from failure

    agree("save_16bit_model", write)
    return True


def _write(folder: Path, name: str, state: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{name}.saving"
    try:
        if name.endswith(".safetensors"):
            from safetensors.torch import save_file

            first: dict[int, str] = {}
            for key, value in state.items():
                first.setdefault(id(value), key)
            save_file({key: state[key] for key in first.values()}, partial, metadata={"format": "pt"})
        else:
            write_archive(partial, state)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, folder / name)
        sync_folder(folder)
    finally:
        partial.unlink(missing_ok=True)
