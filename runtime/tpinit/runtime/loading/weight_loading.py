"""Weights of a model on the meta device: read or drawn for one rank, straight into its parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn
from tpinit.runtime.errors import LoadError
from tpinit.runtime.groups.agreement import RankReport
from tpinit.runtime.groups.digest import digest
from tpinit.runtime.loading.lazy_tensors import LazyTensor, full_slices
from tpinit.runtime.loading.meta_init import MetaModel
from tpinit.runtime.loading.safetensors_dir import SafetensorsDir
from tpinit.runtime.planning.schema import ParameterPlan, Plan

__all__ = ["WeightSource", "load_weights"]


@dataclass(slots=True)
class WeightSource:
    """A model on the meta device and the source of its weights.

    `tensors` are the lazy tensors of the checkpoint by name in the model; a parameter without one gets the values that
    its class draws. `origin` is what ranks compare to see that their weights come from the same place.
    """

    meta_model: MetaModel
    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    checkpoint: SafetensorsDir | None = None
    origin: dict[str, object] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.meta_model.model

    def compared_fields(self) -> dict[str, object]:
        """Return what ranks compare in place of the digest of a model with weights."""
        return {
            **self.origin,
            "model.trainable": [name for name, parameter in self.model.named_parameters() if parameter.requires_grad],
            "model.training": self.model.training,
        }

    def write_slice(self, out: torch.Tensor, record: ParameterPlan, plan: Plan) -> None:
        """Write this rank's slice of a parameter to `out`, in its dtype.

        Raises LoadError for a tied parameter that is stored more than once with different values.
        """
        stored = [name for name in record.names if name in self.tensors]
        if not stored:
            self.meta_model.draw_into(out, record, plan.tp_size, plan.tp_rank)
            return
        _read_slice(self.tensors[stored[0]], out, record, plan)
        for name in stored[1:]:
            other = torch.empty_like(out)
            _read_slice(self.tensors[name], other, record, plan)
            if not torch.equal(out, other):
                raise LoadError(
                    f"{stored[0]} and {name} are one parameter of this model, and the checkpoint has different values "
                    "for them: set tie_word_embeddings to false in its config.json"
                )

    def read_buffers(self) -> None:
        """Read the buffers that are stored. They are replicated on every rank."""
        for name, buffer in self.model.named_buffers():
            if name in self.tensors:
                self.tensors[name].read_into(buffer, full_slices(buffer.shape))

    def close(self) -> None:
        """Close the files of the checkpoint."""
        if self.checkpoint is not None:
            self.checkpoint.close()


def _read_slice(tensor: LazyTensor, out: torch.Tensor, record: ParameterPlan, plan: Plan) -> None:
    whole = full_slices(record.shape)
    if record.dim is None:
        tensor.read_into(out, whole)
        return
    begin = 0
    for offset, length in record.pieces_of(plan.tp_size, plan.tp_rank):
        piece = out.narrow(record.dim, begin, length)
        tensor.read_into(piece, (*whole[: record.dim], (offset, length), *whole[record.dim + 1 :]))
        begin += length


def load_weights(
    weights: WeightSource,
    plan: Plan,
    dp_groups: Iterable[tuple[int, ...]],
    dtype: torch.dtype | None,
    report: RankReport,
) -> None:
    """Give each parameter of a model on the meta device this rank's slice of its weights, in `dtype` (None: its own).

    Adds digests to `report`: ranks that hold the same slices must hold the same values. Raises LoadError.
    """
    try:
        replicated, sharded = _fill_parameters(weights, plan, dtype, any(len(ranks) > 1 for ranks in dp_groups))
    finally:
        weights.close()
    report.fields["weights and buffers that every rank holds"] = replicated
    report.replica["weights of the slices that these ranks share"] = sharded


def _fill_parameters(
    weights: WeightSource, plan: Plan, dtype: torch.dtype | None, has_replicas: bool
) -> tuple[str, str]:
    """Give every parameter its slice; return the digests of what is replicated and of what is sharded.

    Sharded parameters are digested only with `has_replicas`, when another rank holds the same slices.
    """
    replicated, sharded = hashlib.sha256(), hashlib.sha256()
    weights.read_buffers()
    for buffer in weights.model.buffers():
        replicated.update(digest(buffer).encode())
    parameters = dict(weights.model.named_parameters())
    with torch.no_grad():
        for record in plan.parameters:
            parameter = parameters[record.name]
            own_dtype = dtype if dtype is not None and parameter.is_floating_point() else parameter.dtype
            local = torch.empty(record.local_shape(plan.tp_size, plan.tp_rank), dtype=own_dtype)
            weights.write_slice(local, record, plan)
            if record.dim is None:
                replicated.update(digest(local).encode())
            elif has_replicas:
                sharded.update(digest(local).encode())
            parameter.data = local
    return replicated.hexdigest(), sharded.hexdigest()
