"""The numbers of a model that was built without them: read or drawn for one rank, straight into place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn
from tpinit.runtime.errors import LoadError
from tpinit.runtime.groups import agreement
from tpinit.runtime.groups.digest import digest
from tpinit.runtime.loading.lazy_tensors import LazyTensor, full_box
from tpinit.runtime.loading.meta_init import MetaModel
from tpinit.runtime.loading.safetensors_dir import SafetensorsDir
from tpinit.runtime.planning.schema import ParameterPlan, Plan

__all__ = ["WeightSource", "load_weights"]


@dataclass(slots=True)
class WeightSource:
    """A model without its numbers, and where they come from: `sources` by name, else as its class draws them.

    `compared` are the fields, beside those of the model, that must be equal on the ranks: files, config, seed.
    """

    blank: MetaModel
    sources: dict[str, LazyTensor] = field(default_factory=dict)
    stored: SafetensorsDir | None = None
    compared: dict[str, object] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.blank.model

    def compared_fields(self) -> dict[str, object]:
        """Return the fields that must be equal on the ranks, instead of the digests of a model that has its weights."""
        return {
            **self.compared,
            "model.trainable": [name for name, one in self.model.named_parameters() if one.requires_grad],
            "model.training": self.model.training,
        }

    def write(self, out: torch.Tensor, record: ParameterPlan, plan: Plan) -> None:
        """Write this rank's part of a parameter to `out`, in its dtype.

        Raises LoadError for a tied parameter that is stored more than once with different numbers.
        """
        known = [name for name in record.names if name in self.sources]
        if not known:
            self.blank.draw_into(out, record, plan.tp_size, plan.tp_rank)
            return
        _read(self.sources[known[0]], out, record, plan)
        for name in known[1:]:
            other = torch.empty_like(out)
            _read(self.sources[name], other, record, plan)
            if not torch.equal(out, other):
                raise LoadError(
                    f"{known[0]} and {name} are one parameter of this model, and the checkpoint has different numbers "
                    "for them: set tie_word_embeddings to false in its config.json"
                )

    def buffers(self) -> None:
        """Read the buffers that are stored. They are whole on every rank."""
        for name, buffer in self.model.named_buffers():
            if name in self.sources:
                self.sources[name].read_into(buffer, full_box(buffer.shape))

    def close(self) -> None:
        """Let go of the files."""
        if self.stored is not None:
            self.stored.close()


def _read(source: LazyTensor, out: torch.Tensor, record: ParameterPlan, plan: Plan) -> None:
    box = full_box(record.shape)
    if record.dim is None:
        source.read_into(out, box)
        return
    place = 0
    for offset, length in record.pieces_of(plan.tp_size, plan.tp_rank):
        part = out.narrow(record.dim, place, length)
        source.read_into(part, (*box[: record.dim], (offset, length), *box[record.dim + 1 :]))
        place += length


def load_weights(
    weights: WeightSource, plan: Plan, dp_groups: Iterable[tuple[int, ...]], dtype: torch.dtype | None
) -> None:
    """Give each parameter of a model on the meta device this rank's part of its numbers, in `dtype` (None: its own).

    Ranks then compare digests: those that hold the same slices must hold the same numbers. One gather over the world.
    Raises AgreementError if ranks differ or one of them could not read its part, and the rank's own error (LoadError)
    if all ranks failed alike.
    """
    report = agreement.RankReport()
    replicas = list(dp_groups)
    failure: Exception | None = None
    try:
        sums = _fill(weights, plan, dtype, any(len(ranks) > 1 for ranks in replicas))
        report.fields["numbers of what is whole on every rank"] = sums[False]
        report.replica["numbers of the slices that these ranks share"] = sums[True]
    except Exception as error:  # whatever it is, the other ranks wait for this rank's report
        failure = error
        report.error = agreement.describe_error(error)
    finally:
        weights.close()
    reports = agreement.gather_reports(report)
    agreement.check_reports(reports)
    if failure is not None:
        raise failure
    agreement.check_replicas(reports, replicas)


def _fill(weights: WeightSource, plan: Plan, dtype: torch.dtype | None, shared: bool) -> dict[bool, str]:
    """Put this rank's part into every parameter; return the digests of what is cut, and of what is whole.

    Of what is cut only where it is `shared`, that is, where another rank holds the same slices.
    """
    sums = {True: hashlib.sha256(), False: hashlib.sha256()}
    weights.buffers()
    for buffer in weights.model.buffers():
        sums[False].update(digest(buffer).encode())
    parameters = dict(weights.model.named_parameters())
    with torch.no_grad():
        for record in plan.parameters:
            parameter = parameters[record.name]
            own = dtype if dtype is not None and parameter.is_floating_point() else parameter.dtype
            part = torch.empty(record.local_shape(plan.tp_size, plan.tp_rank), dtype=own)
            weights.write(part, record, plan)
            cut = record.dim is not None
            if shared or not cut:
                sums[cut].update(digest(part).encode())
            parameter.data = part
    return {cut: one.hexdigest() for cut, one in sums.items()}
