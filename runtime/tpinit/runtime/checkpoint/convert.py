"""A model from one layout of files to another, without ranks: ours, transformers' and DeepSpeed's `mp_rank_XX`.

States of Adam and SGD, and of the schedule, go with fp32 weights between our checkpoints and DeepSpeed's; it is said
where they are left out.
One tensor is in memory at a time, and for DeepSpeed's files one rank's part, because torch.save writes a file at once.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tpinit.reference.errors import TpinitError
from tpinit.runtime.checkpoint import folders
from tpinit.runtime.checkpoint.deepspeed_cuts import cuts_of_model
from tpinit.runtime.checkpoint.deepspeed_files import (
    DeepSpeedTensors,
    cuts_of_checkpoint,
    deepspeed_files,
    write_deepspeed,
)
from tpinit.runtime.checkpoint.load import open_folder, verify
from tpinit.runtime.checkpoint.model_tensors import (
    CheckpointTensors,
    ModelTensors,
    PretrainedTensors,
    TensorSpec,
    check_names,
)
from tpinit.runtime.checkpoint.optimizer_states import OptimizerStates, unfit_weights
from tpinit.runtime.checkpoint.safetensors_writer import SHARD_BYTES, copy_rest, write_safetensors
from tpinit.runtime.checkpoint.weights_only import write_checkpoint
from tpinit.runtime.errors import CheckpointError
from tpinit.runtime.loading.open_model import build_without_weights, read_config
from tpinit.runtime.loading.safetensors_dir import INDEX, SINGLE

__all__ = ["CONVERTED", "KINDS", "Conversion", "convert", "new_folder"]

KINDS = ("tpinit", "huggingface", "deepspeed")
CONVERTED = "converted"  # the tag of a converted checkpoint
_log = logging.getLogger("tpinit")
_SIXTEEN = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert` does. `model` is a transformers directory; None for options means as in the source.

    `tp_size` and `like` (a checkpoint of DeepSpeed whose cuts are taken) are for DeepSpeed's files, `shard_bytes` for
    safetensors. `masters`: fp32 master copies of a checkpoint in place of its parameters.
    """

    kind: str
    model: Path | None = None
    tp_size: int | None = None
    like: Path | None = None
    dtype: torch.dtype | None = None
    masters: bool = False
    shard_bytes: int = SHARD_BYTES


def convert(folder: Path, output: Path, options: Conversion, say: Callable[[str], None] = _log.warning) -> list[str]:
    """Write the model in `folder` to `output` in another layout; return the names of the files.

    `folder` is a checkpoint of ours or of DeepSpeed, a run whose `latest` names one, or a transformers directory.
    `output` must be no folder or an empty one, and appears when it is complete. `say` gets a sentence if states of the
    optimizer or of its schedule are left out. Raises CheckpointError or LoadError.
    """
    place, kind = find_source(folder)
    _check_options(kind, options)
    meta = _meta_model(options.model) if options.model is not None else None
    source = _open(place, kind, meta, options)
    try:
        if meta is not None:
            check_names(source, meta)
        specs = {name: _spec(spec, options.dtype) for name, spec in source.specs.items()}
        states = _fitting_states(source, specs, options, say)
        return new_folder(output, lambda partial: _write(source, specs, states, meta, partial, place, options))
    finally:
        source.close()


def find_source(folder: Path) -> tuple[Path, str]:
    """Return the folder that holds the files, and which of `KINDS` it is. Raises CheckpointError."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder: give a checkpoint or a transformers directory")
    if (folder / folders.MANIFEST).exists():
        return folder, "tpinit"
    if deepspeed_files(folder):
        return folder, "deepspeed"
    if (folder / SINGLE).exists() or (folder / INDEX).exists():
        return folder, "huggingface"
    tag = folders.read_latest(folder)
    found = folders.find(folder, tag) if tag is not None else None
    if found is None:
        raise CheckpointError(
            f"{folder} has neither {folders.MANIFEST}, mp_rank_00_model_states.pt, {SINGLE} nor a file "
            f"{folders.LATEST!r} that names a checkpoint"
        )
    if (found / folders.MANIFEST).exists():
        return found, "tpinit"
    if deepspeed_files(found):
        return found, "deepspeed"
    raise CheckpointError(f"{found}, which {folders.LATEST!r} names, is no checkpoint of tpinit or DeepSpeed")


def _check_options(kind: str, options: Conversion) -> None:
    if options.kind not in KINDS:
        raise CheckpointError(f"{options.kind!r} is no layout; legal are {', '.join(KINDS)}")
    if kind == options.kind != "deepspeed":
        raise CheckpointError(f"the source has the layout of {kind} already")
    if options.masters and kind != "tpinit":
        raise CheckpointError("master copies are in a checkpoint of tpinit alone")
    to_deepspeed = options.kind == "deepspeed"
    if not to_deepspeed and (options.tp_size is not None or options.like is not None):
        raise CheckpointError("a TP size and a checkpoint to cut like are for DeepSpeed's layout; tpinit's fits any")
    if to_deepspeed and (options.tp_size is None) == (options.like is None):
        raise CheckpointError("DeepSpeed's layout is for one TP size: give either the size or a checkpoint to cut like")
    if options.tp_size is not None and not 1 <= options.tp_size <= 1024:
        raise CheckpointError(f"a TP size of {options.tp_size}; legal are 1 to 1024")
    if to_deepspeed and options.like is None and options.model is None and kind != "huggingface":
        raise CheckpointError("how DeepSpeed cuts follows from the model's config: give its directory as the model")


def _meta_model(directory: Path) -> Any:
    return build_without_weights(read_config(directory)).model


def _open(place: Path, kind: str, meta: Any, options: Conversion) -> ModelTensors:
    if kind == "deepspeed":
        return DeepSpeedTensors(place, meta)
    if kind == "huggingface":
        return PretrainedTensors(place)
    opened = open_folder(place)
    verify(opened, 0, 1)
    return CheckpointTensors(opened, options.masters)


def _spec(spec: TensorSpec, dtype: torch.dtype | None) -> TensorSpec:
    return TensorSpec(dtype if dtype is not None and spec.dtype.is_floating_point else spec.dtype, spec.shape)


def _fitting_states(
    source: ModelTensors, specs: Mapping[str, TensorSpec], options: Conversion, say: Callable[[str], None]
) -> OptimizerStates | None:
    """Return the states of the optimizer and its schedule that the other layout can hold; say why if it can't."""
    states = source.states
    if isinstance(states, OptimizerStates):
        written = {name: spec.dtype for name, spec in specs.items()} if options.kind == "deepspeed" else None
        reason = unfit_weights(states, {name: spec.dtype for name, spec in source.specs.items()}, written)
        if options.kind == "huggingface":
            reason = "a directory of transformers has none"
        if reason is None:
            if isinstance(states.schedule, str):
                say(f"the state of the schedule is left out: {states.schedule}")
                return replace(states, schedule=None)
            return states
        states = reason
    if states is not None:
        say(f"the states of the optimizer are left out: {states}")
    return None


def _write(
    source: ModelTensors,
    specs: Mapping[str, TensorSpec],
    states: OptimizerStates | None,
    meta: Any,
    partial: Path,
    place: Path,
    options: Conversion,
) -> list[str]:
    model = meta if meta is not None else source.model
    if options.kind == "huggingface":
        names = write_safetensors(source, specs, partial, options.shard_bytes)
        if options.model is not None:
            copy_rest(options.model, partial)
        return names
    inner = partial / CONVERTED
    inner.mkdir()
    if options.kind == "tpinit":
        masters = {
            name: TensorSpec(torch.float32, spec.shape)
            for name, spec in source.specs.items()
            if spec.dtype is torch.float32 and specs[name].dtype in _SIXTEEN and _is_parameter(model, name)
        }
        names = write_checkpoint(source, specs, masters, inner, str(place), states)
    else:
        if options.like is not None:
            cuts, tp_size = cuts_of_checkpoint(find_source(options.like)[0])
        else:
            assert options.tp_size is not None
            cuts, tp_size = cuts_of_model(model, options.tp_size), options.tp_size
        names = write_deepspeed(source, specs, cuts, _aliases(model), inner, tp_size, states)
    folders.write_latest(partial, CONVERTED)
    return [f"{CONVERTED}/{name}" for name in names]


def _is_parameter(model: Any, name: str) -> bool:
    return model is None or any(name == own for own, _ in model.named_parameters())


def _aliases(model: Any) -> dict[str, str]:
    """Return the other names of tied parameters, with the first."""
    first: dict[int, str] = {}
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False) if model is not None else ():
        if first.setdefault(id(parameter), name) != name:
            found[name] = first[id(parameter)]
    return found


def new_folder(output: Path, write: Callable[[Path], list[str]]) -> list[str]:
    """Let `write` fill a folder that gets its name when it is complete. Raises CheckpointError."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output} exists and is not an empty folder: give a new one")
    partial = output.with_name(f".{output.name}.saving")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        names = write(partial)
        if output.exists():
            output.rmdir()
        partial.rename(output)
    except OSError as error:
        raise CheckpointError(f"{output} could not be written: {error}") from error
    except (RuntimeError, MemoryError) as error:  # torch.save raises RuntimeError where the disk is full
        if isinstance(error, TpinitError):
            raise
        raise CheckpointError(f"{output} could not be written: {str(error).splitlines()[0][:300]}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return names
