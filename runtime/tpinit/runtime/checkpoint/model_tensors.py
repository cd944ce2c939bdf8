"""The whole tensors of a model, one at a time: of a checkpoint of ours, or of a transformers directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from tpinit.runtime.checkpoint.load import Opened
from tpinit.runtime.checkpoint.optimizer_states import OptimizerStates, stored_states
from tpinit.runtime.checkpoint.places import PlacedTensor
from tpinit.runtime.checkpoint.reader import TensorFiles
from tpinit.runtime.errors import CheckpointError, LoadError
from tpinit.runtime.loading.lazy_tensors import full_slices
from tpinit.runtime.loading.open_model import open_pretrained

__all__ = ["CheckpointTensors", "ModelTensors", "PretrainedTensors", "TensorSpec", "check_names"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The dtype and the shape of a whole tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class ModelTensors(Protocol):
    """The parameters and buffers of a model by their names in its state dict, tied ones by the first of theirs."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The dtype and shape of each tensor."""

    @property
    def model(self) -> Any:
        """The model on the meta device; None if it is not known."""

    @property
    def states(self) -> OptimizerStates | str | None:
        """The states of the optimizer, why they can't be converted, or None if there are none."""

    def read(self, name: str) -> torch.Tensor:
        """Return a whole tensor, in memory of its own. Raises CheckpointError or LoadError."""

    def close(self) -> None:
        """Close the files."""


class CheckpointTensors:
    """The model in a checkpoint of ours. `masters`: fp32 master copies in place of parameters where there are some."""

    def __init__(self, opened: Opened, masters: bool = False) -> None:
        stored = opened.manifest.tensors
        self._sources = {name.removeprefix("model."): name for name in sorted(stored) if name.startswith("model.")}
        if masters:
            self._sources.update({name: f"master.{name}" for name in self._sources if f"master.{name}" in stored})
        self.specs = {
            name: TensorSpec(stored[source].dtype, stored[source].shape) for name, source in self._sources.items()
        }
        self.model = None
        self._opened = opened
        self._files = TensorFiles(opened.folder, opened.manifest)

    @cached_property
    def states(self) -> OptimizerStates | str | None:
        """The states of the optimizer."""
        return stored_states(self._opened, self._read)

    def read(self, name: str) -> torch.Tensor:
        """Return a whole tensor. Raises CheckpointError."""
        return self._read(self._sources[name])

    def _read(self, name: str) -> torch.Tensor:
        stored = self._opened.manifest.tensors[name]
        whole = torch.empty(stored.shape, dtype=stored.dtype)
        self._files.read(PlacedTensor(name, whole, stored.shape), 0)
        return whole

    def close(self) -> None:
        """Close the files."""
        self._files.close()


class PretrainedTensors:
    """The model in a directory that transformers' `save_pretrained` wrote. Raises LoadError for what can't be read."""

    states = None

    def __init__(self, directory: Path) -> None:
        self._source = open_pretrained(directory, None, None)
        self.model = self._source.model
        self._stored: dict[str, str] = {}
        tied: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            tied.setdefault(id(parameter), []).append(name)
        for names in tied.values():
            self._stored[names[0]] = next(name for name in names if name in self._source.tensors)
        parameters = {name for names in tied.values() for name in names}
        self._buffers = {name: value for name, value in self.model.state_dict().items() if name not in parameters}
        self.specs = {
            name: TensorSpec(self._source.tensors[stored].dtype, tuple(self._source.tensors[stored].shape))
            for name, stored in self._stored.items()
        }
        self.specs |= {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in self._buffers.items()}
        self._tied = {names[0]: [name for name in names if name in self._source.tensors] for names in tied.values()}

    def read(self, name: str) -> torch.Tensor:
        """Return a whole tensor. Raises LoadError, also for a tied one that is stored with different values."""
        spec = self.specs[name]
        whole = torch.empty(spec.shape, dtype=spec.dtype)
        if name in self._buffers and name not in self._source.tensors:
            return whole.copy_(self._buffers[name])
        stored = self._tied.get(name, [name])
        self._source.tensors[stored[0]].read_into(whole, full_slices(spec.shape))
        for other in stored[1:]:
            again = torch.empty_like(whole)
            self._source.tensors[other].read_into(again, full_slices(spec.shape))
            if not torch.equal(whole, again):
                raise LoadError(
                    f"{stored[0]} and {other} are one parameter of this model, and have different values: set "
                    "tie_word_embeddings to false in config.json"
                )
        return whole

    def close(self) -> None:
        """Close the files."""
        self._source.close()


def check_names(source: ModelTensors, model: Any) -> None:
    """Raise CheckpointError, with the differences, unless the tensors are those of a model on the meta device."""
    parameters = {name: tuple(value.shape) for name, value in model.named_parameters()}
    buffers = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in parameters}
    problems = [f"{name} is not in it" for name in parameters if name not in source.specs]
    problems += [f"the model has no {name}" for name in source.specs if name not in {**parameters, **buffers}]
    problems += [
        f"{name} has shape {list(spec.shape)} in it, and {list(parameters[name])} in the model"
        for name, spec in source.specs.items()
        if name in parameters and spec.shape != parameters[name]
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"the checkpoint is not one of a {type(model).__qualname__}: {'; '.join(problems[:5])}{more}"
        )
