"""Copies stay copies: every so many updates the ranks compare the parameters that they hold in common.

Over a TP group these are the replicated parameters and the buffers; over a DP group all parameters of the rank, since
the replicas of a model are equal. Each rank sends one number of 8 bytes a group; what differs is gathered only then.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from tpinit.runtime.errors import AgreementError
from tpinit.runtime.groups.agreement import RankReport, check_reports, gather_reports
from tpinit.runtime.groups.devices import message_device
from tpinit.runtime.groups.digest import digest, fold
from tpinit.runtime.groups.issuing import collective
from tpinit.runtime.groups.process_groups import GroupView, ParallelGroups
from tpinit.runtime.training.param_state import ParamState

__all__ = ["ReplicaCheck"]

_MASTER = " (fp32 master)"
_log = logging.getLogger("tpinit")


class ReplicaCheck:
    """Compares the copies of one model's parameters every `every` updates; 0 compares none.

    A buffer is compared while it has the shape that it had at `initialize`: a model may cache in it what it computes
    for the rank's own heads. On CUDA, where one computation may round differently on two ranks, copies count as equal
    if their norms agree to three digits.
    """

    def __init__(self, model: nn.Module, states: Sequence[ParamState], groups: ParallelGroups, every: int) -> None:
        self.states = states
        self.groups = groups
        self.every = every
        self._model = model
        self._buffer_shapes = {name: buffer.shape for name, buffer in model.named_buffers()}

    def after(self, step: int) -> None:
        """Compare the copies after update number `step`. Raises AgreementError on all ranks if they differ."""
        groups = [self.groups.tp, self.groups.dp]
        if not self.every or step % self.every or all(group.group is None for group in groups):
            return
        own = {state.record.name: state.parameter.detach() for state in self.states}
        masters = {
            f"{state.record.name}{_MASTER}": state.target.detach()
            for state in self.states
            if state.target is not state.parameter
        }
        buffers = {
            f"{name} (buffer)": buffer
            for name, buffer in self._model.named_buffers()
            if buffer.shape == self._buffer_shapes.get(name) and not buffer.is_meta
        }
        sharded = {state.record.name for state in self.states if state.record.dim is not None}
        replica = own | masters
        replicated = {name: one for name, one in replica.items() if name.removesuffix(_MASTER) not in sharded}
        self._compare(step, replica, replicated | buffers)

    def _compare(self, step: int, replica: Mapping[str, torch.Tensor], replicated: Mapping[str, torch.Tensor]) -> None:
        """Compare over the DP group first: so each TP group learns if another one differs inside, and raises too."""
        replicas_differ = _differs(_fold_all(replica), self.groups.dp)
        state = torch.stack([_fold_all(replicated), torch.tensor(int(replicas_differ))])
        if not _differs(state, self.groups.tp) and not replicas_differ:
            return
        title = (
            f"step {step}: copies of a parameter or a buffer differ, so training has gone on with different models "
            "(something changed them on single ranks, or drew other random numbers there)"
        )
        differences: dict[str, list[str]] = {}  # the names of what differs, by the text of an error
        for group, tensors, kind in ((self.groups.dp, replica, "DP"), (self.groups.tp, replicated, "TP")):
            if group.group is not None:
                reports = gather_reports(RankReport(_described(tensors)), group.group)
                try:
                    check_reports(reports, group.ranks, f"between the ranks of a {kind} group")
                except AgreementError as error:
                    differences[str(error)] = list(error.fields)
        if self.groups.tp.group is not None:  # a rank whose own copies agree raises what others of its group found
            found: list[dict[str, list[str]]] = [{} for _ in range(self.groups.tp.size)]
            collective("all_gather_object", "differences of parameters", found, differences, group=self.groups.tp.group)
            differences = {text: names for report in found for text, names in report.items()}
        if not differences:
            _log.warning("step %d: copies of parameters differ between ranks by rounding only", step)
            return
        raise AgreementError(
            "\n".join([f"{title}:", *differences]), [name for names in differences.values() for name in names]
        )


def _fold_all(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return one 64-bit hash of all tensors, in order, an int64 scalar on the CPU."""
    if not tensors:
        return torch.zeros((), dtype=torch.int64)
    return fold(torch.stack([fold(tensor) for tensor in tensors.values()])).cpu()


def _differs(value: torch.Tensor, group: GroupView) -> bool:
    """Return whether a small int64 tensor differs between the ranks of a group, by one all-gather."""
    if group.group is None:
        return False
    channel = group.control if group.control is not None else group.group
    sent = value.reshape(-1).to(message_device(channel))
    gathered = [torch.empty_like(sent) for _ in range(group.size)]
    collective("all_gather", "digests of parameters", gathered, sent, group=channel)
    return any(not torch.equal(other, sent) for other in gathered)


def _norm(tensor: torch.Tensor) -> float:
    """Return the 2-norm, in float64, without a copy of the tensor in this dtype."""
    if not tensor.is_floating_point():
        return float(tensor.double().norm())
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _described(tensors: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """Return of each tensor its norm and a digest, by name; on CUDA the norm to three digits only."""
    return {
        name: f"norm {_norm(tensor):.9g}, digest {digest(tensor).split()[0]}"
        if tensor.device.type == "cpu"
        else f"norm {_norm(tensor):.3g}"
        for name, tensor in tensors.items()
    }
