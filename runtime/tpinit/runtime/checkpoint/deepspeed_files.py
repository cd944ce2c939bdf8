"""DeepSpeed's checkpoints of AutoTP: `mp_rank_XX_model_states.pt`, a file of torch.save for each rank of a TP group.

They are pickles. They are read with torch's `weights_only`, which calls nothing that a file names but torch's own
constructors of tensors, and mapped, so that a tensor is in memory only while it is read.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tpinit.runtime.checkpoint.deepspeed_cuts import INFO, TensorCut, fused_in_deepspeed, read_cuts, written_cuts
from tpinit.runtime.checkpoint.deepspeed_states import deepspeed_states, state_dict_of
from tpinit.runtime.checkpoint.folders import open_file, write_archive
from tpinit.runtime.checkpoint.model_tensors import ModelTensors, TensorSpec
from tpinit.runtime.checkpoint.optimizer_states import COUNTERS, OptimizerStates
from tpinit.runtime.checkpoint.places import uncovered
from tpinit.runtime.errors import CheckpointError
from tpinit.runtime.slicing import take_pieces

__all__ = ["DeepSpeedTensors", "cuts_of_checkpoint", "deepspeed_files", "write_deepspeed"]

_FILE = re.compile(r"mp_rank_([0-9]{2,4})_model_states\.pt")
_VERSION = "0.19.8"


def deepspeed_files(folder: Path) -> list[Path]:
    """Return the files of the ranks, in order; empty if there are none. Raises CheckpointError if one is missing."""
    found = {int(match[1]): path for path in folder.iterdir() if (match := _FILE.fullmatch(path.name))}
    if sorted(found) != list(range(len(found))):
        raise CheckpointError(f"{folder} has files of the ranks {sorted(found)}: one is missing")
    if not found and any(folder.glob("zero_pp_rank_*_mp_rank_*_model_states.pt")):
        raise CheckpointError(
            f"{folder} is of ZeRO 3, whose parameters are cut over data-parallel ranks: run DeepSpeed's zero_to_fp32.py"
        )
    if any(folder.glob("layer_*expert_*_model_states.pt")):
        raise CheckpointError(f"{folder} holds experts of DeepSpeed's MoE in files of their own, which are not read")
    return [found[rank] for rank in sorted(found)]


class DeepSpeedTensors:
    """The model in a folder of `mp_rank_XX_model_states.pt`. Raises CheckpointError for what can't be read or joined.

    `model`, on the meta device, gives the shapes of whole tensors where the files do not: those of DeepSpeed before
    0.19. Without both, a folder of one file is read alone.
    """

    def __init__(self, folder: Path, model: Any = None) -> None:
        files = deepspeed_files(folder)
        states = [_load(path) for path in files]
        self.model = model
        self._modules = [_module(path, state, len(files)) for path, state in zip(files, states, strict=True)]
        first = self._modules[0]
        for path, module in zip(files, self._modules, strict=True):
            if module.keys() != first.keys():
                raise CheckpointError(f"{path} has other tensors than {files[0]}")
        names = _untied(first, model)
        buffers = states[0].get("buffer_names")
        self.cuts = read_cuts(states[0].get(INFO), names, len(files))
        for name in names:
            parts = [module[name] for module in self._modules]
            if name not in self.cuts:
                is_buffer = isinstance(buffers, list) and name in buffers
                self.cuts[name] = _cut_by_shapes(name, parts, is_buffer, model)
            _check_parts(name, parts, self.cuts[name], folder)
        self.specs = {name: TensorSpec(first[name].dtype, cut.shape) for name, cut in self.cuts.items()}
        parameters = [name for name in names if not isinstance(buffers, list) or name not in buffers]
        self.states = deepspeed_states(states, parameters, self.cuts, self._join)
        if self.states is None and any(folder.glob("*zero_pp_rank_*_optim_states.pt")):
            self.states = "those of ZeRO and of 16-bit optimizers are flat, in files of their own, and are not read"

    def read(self, name: str) -> torch.Tensor:
        """Return a whole tensor. Raises CheckpointError if ranks hold other values of the same elements."""
        return self._join(name, [module[name] for module in self._modules])

    def _join(self, name: str, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        cut = self.cuts[name]
        if cut.dim is None:
            if not all(_same_bits(part, parts[0]) for part in parts[1:]):
                raise CheckpointError(f"{name} is on every rank, and the ranks have different values")
            return parts[0].clone(memory_format=torch.contiguous_format)
        whole = torch.empty(cut.shape, dtype=parts[0].dtype)
        taken: list[tuple[int, int]] = []
        for part, pieces in zip(parts, cut.pieces, strict=True):
            start = 0
            for offset, length in pieces:
                own, here = whole.narrow(cut.dim, offset, length), part.narrow(cut.dim, start, length)
                new = uncovered(offset, length, taken)
                for begin, count in new:
                    own.narrow(cut.dim, begin - offset, count).copy_(here.narrow(cut.dim, begin - offset, count))
                if new != [(offset, length)] and not _same_bits(own, here):
                    raise CheckpointError(f"{name} is on several ranks in part, and they have different values")
                start += length
            taken += pieces
        return whole

    def close(self) -> None:
        """Let go of the files."""
        self._modules = []
        self.states = None


def _load(path: Path) -> dict[str, Any]:
    os.close(open_file(path))  # a regular file, and no link
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # whatever a file that someone else wrote does to the reader
        text = " ".join(str(error).split())
        named = re.search(r"GLOBAL ([\w.]+)", text)
        if named:
            raise CheckpointError(
                f"{path} holds more than tensors and plain values ({named[1]}), and is not unpickled: save it again "
                "without that in client_state"
            ) from error
        raise CheckpointError(f"{path} can't be read: {type(error).__name__}: {text[:200]}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, and no checkpoint of DeepSpeed")
    return state


def _module(path: Path, state: Mapping[str, Any], count: int) -> Mapping[str, torch.Tensor]:
    module = state.get("module")
    if not isinstance(module, dict) or not module:
        raise CheckpointError(f"{path} has no module's state dict: it is no checkpoint of AutoTP")
    for name, value in module.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            raise CheckpointError(f"{path}: {str(name)[:100]} is no dense tensor")
        if value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(f"{path}: {name} is quantized, or has no values")
    size = state.get("mp_world_size", count)
    if size != count:
        raise CheckpointError(f"{path} is of {str(size)[:20]} ranks, and the folder has files of {count}")
    return module


def _untied(module: Mapping[str, torch.Tensor], model: Any) -> list[str]:
    """Return the names without those of tensors that another name has already."""
    if model is not None:
        first: dict[int, str] = {}
        aliases = {
            name: first.setdefault(id(one), name) for name, one in model.named_parameters(remove_duplicate=False)
        }
        return [name for name in module if aliases.get(name, name) == name]
    seen: set[Any] = set()
    found = []
    for name, value in module.items():
        key = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride())
        if not value.numel() or key not in seen:
            found.append(name)
        seen.add(key)
    return found


def _cut_by_shapes(name: str, parts: Sequence[torch.Tensor], is_buffer: bool, model: Any) -> TensorCut:
    """Return the cut of a tensor that the files do not describe: in the order of ranks, if that alone is possible."""
    shapes = [tuple(part.shape) for part in parts]
    if len(parts) == 1 or is_buffer:
        return TensorCut(shapes[0])
    whole = None if model is None else {n: tuple(p.shape) for n, p in model.named_parameters()}.get(name)
    if whole is None:
        why = "give the model's directory as --model" if model is None else "the model has no such parameter"
        raise CheckpointError(f"the files do not say how {name} is cut (DeepSpeed 0.19 and later do): {why}")
    if all(shape == whole for shape in shapes):
        return TensorCut(whole)
    lengths = [(dim, [shape[dim] for shape in shapes]) for dim in range(len(whole)) if len(shapes[0]) == len(whole)]
    fits = [dim for dim, sizes in lengths if sum(sizes) == whole[dim] and set(sizes) != {whole[dim]}]
    if fused_in_deepspeed(name) or len(fits) != 1:
        raise CheckpointError(
            f"the files do not say how {name} is cut, and its parts of shapes {shapes[:4]} can be joined to {whole} in "
            "several ways or none: load and save it with DeepSpeed 0.19 or later"
        )
    starts = [sum(lengths[fits[0]][1][:rank]) for rank in range(len(parts))]
    pieces = tuple(((start, shape[fits[0]]),) for start, shape in zip(starts, shapes, strict=True))
    return TensorCut(whole, fits[0], pieces)


def _check_parts(name: str, parts: Sequence[torch.Tensor], cut: TensorCut, folder: Path) -> None:
    for rank, part in enumerate(parts):
        if part.dtype != parts[0].dtype or tuple(part.shape) != cut.local_shape(rank):
            raise CheckpointError(
                f"{folder}: {name} of rank {rank} is {list(part.shape)} of {part.dtype}, and must be "
                f"{list(cut.local_shape(rank))} of {parts[0].dtype}"
            )


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors of one dtype and shape are equal bit for bit: NaN equals NaN."""
    return torch.equal(
        first.contiguous().reshape(-1).view(torch.uint8), second.contiguous().reshape(-1).view(torch.uint8)
    )


def cuts_of_checkpoint(folder: Path) -> tuple[dict[str, TensorCut], int]:
    """Return the cuts and the number of ranks of a checkpoint of DeepSpeed. Raises CheckpointError."""
    found = DeepSpeedTensors(folder)
    count = len(deepspeed_files(folder))
    found.close()
    return found.cuts, count


def write_deepspeed(
    source: ModelTensors,
    specs: Mapping[str, TensorSpec],
    cuts: Mapping[str, TensorCut],
    aliases: Mapping[str, str],
    folder: Path,
    tp_size: int,
    states: OptimizerStates | None = None,
) -> list[str]:
    """Write a file for each rank, and return their names. Needs memory for one rank's part and one tensor.

    `aliases` maps the other names of tied parameters to the first; `states` are those of the optimizer. Raises
    CheckpointError if a cut is of another shape.
    """
    wrong = [name for name, spec in specs.items() if name in cuts and cuts[name].shape != spec.shape]
    wrong += [name for name in cuts if name not in specs]
    if wrong:
        raise CheckpointError(f"the cuts are those of another model: {', '.join(sorted(wrong)[:5])}")
    names = []
    for rank in range(tp_size):
        module: OrderedDict[str, torch.Tensor] = OrderedDict()
        for name, spec in specs.items():
            module[name] = _part(source.read(name), cuts.get(name), rank, spec.dtype)
        for alias, name in aliases.items():
            module[alias] = module[name]
        state = {
            "module": module,
            "buffer_names": [name for name in specs if name not in cuts],
            "optimizer": _own_states(states, cuts, rank) if states is not None else None,
            **dict.fromkeys(("param_shapes", "frozen_param_shapes", "shared_params")),
            "lr_scheduler": states.schedule if states is not None else None,
            **dict.fromkeys(("frozen_param_fragments", "data_sampler", "random_ltd")),
            **(states.counters if states is not None else dict.fromkeys(COUNTERS, 0)),
            "dp_world_size": 1,
            "mp_world_size": tp_size,
            "ds_config": {},
            "ds_version": _VERSION,
            INFO: written_cuts(cuts, tp_size),
        }
        names.append(f"mp_rank_{rank:02d}_model_states.pt")
        write_archive(folder / names[-1], state)
        del module, state
    return names


def _own_states(states: OptimizerStates, cuts: Mapping[str, TensorCut], rank: int) -> dict[str, Any]:
    return state_dict_of(states, lambda whole, name: _part(whole, cuts[name], rank, whole.dtype))


def _part(whole: torch.Tensor, cut: TensorCut | None, rank: int, dtype: torch.dtype) -> torch.Tensor:
    if cut is None or cut.dim is None:
        return whole.to(dtype)
    if not cut.pieces[rank]:
        return whole.new_empty(cut.local_shape(rank), dtype=dtype)
    return take_pieces(whole, cut.dim, cut.pieces[rank]).to(dtype, copy=True).contiguous()
