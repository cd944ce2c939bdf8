"""`GatheredParameters`: whole parameters of a sharded model for a while, to be read and written."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.agreement import RankReport, check_reports, gather_reports
from tpinit.runtime.groups.issuing import collective
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.slicing import local_part
from tpinit.runtime.training.param_state import ParamState
from tpinit.runtime.training.sharded_tensors import known_models
from tpinit.runtime.training.whole_model import gather_parameter

__all__ = ["GatheredParameters"]


class GatheredParameters:
    """A context in which sharded parameters hold their whole tensors; every rank must enter and leave it alike.

        with GatheredParameters(model.lm_head.weight, modifier_rank=0):
            if dist.get_rank() == 0:
                model.lm_head.weight[7].zero_()

    Arguments and behaviour are those of DeepSpeed's class of this name. `params` is a parameter or an iterable of
    parameters; those of no initialized model stay as they are. With `modifier_rank`, a global rank, its values are sent
    to all ranks at the end, and each rank keeps its part; the fp32 master copies follow at the next update. Without it
    what was written to gathered parameters is lost. `fwd_module` has no effect. `enabled` False does nothing.

    A rank needs memory for all gathered tensors. A forward inside is refused. Raises EngineError for a `modifier_rank`
    that is no rank, and AgreementError on all ranks if one gathers other parameters or does something else, and if a
    parameter has another shape at the end.
    """

    def __init__(
        self,
        params: nn.Parameter | Iterable[nn.Parameter],
        modifier_rank: int | None = None,
        fwd_module: Any = None,
        enabled: bool = True,
    ) -> None:
        del fwd_module  # ZeRO 3 of DeepSpeed needs it
        given = [params] if isinstance(params, torch.Tensor) else list(params)
        states = {id(state.parameter): (state, model) for model in known_models() for state in model.states}
        found = {id(parameter): states[id(parameter)] for parameter in given if id(parameter) in states}
        self._states = list(found.values()) if enabled else []
        self._modifier_rank = modifier_rank
        self._parts: list[tuple[ParamState, GroupView, torch.Tensor]] = []
        if modifier_rank is not None and enabled and modifier_rank not in range(dist.get_world_size()):
            raise EngineError(f"modifier_rank is {modifier_rank}, and must be one of the {dist.get_world_size()} ranks")

    def __enter__(self) -> None:
        """Gather the parameters: one broadcast for each rank of the TP group and each parameter."""
        for model in dict.fromkeys(model for _, model in self._states):
            names = [state.record.name for state, owner in self._states if owner is model]
            model.meet(f"GatheredParameters of {', '.join(names)}")
        for state, model in self._states:
            part, tp = state.parameter.data, model.groups.tp
            whole = gather_parameter(part, state.record, tp)
            self._parts.append((state, tp, part))
            state.parameter.data = whole

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give each parameter its part back, of the values of `modifier_rank` if there is one and no error."""
        with ExitStack() as stack, torch.no_grad():
            for state, _, part in self._parts:
                stack.callback(setattr, state.parameter, "data", part)
            if self._modifier_rank is not None and error is None and self._parts:
                self._check_shapes()
                for state, tp, part in self._parts:
                    whole = state.parameter.data.contiguous()
                    collective("broadcast", f"the edited {state.record.name}", whole, self._modifier_rank)
                    part.copy_(local_part(whole, state.record, tp.size, tp.position))
        self._parts.clear()

    def _check_shapes(self) -> None:
        shapes = {state.record.name: tuple(state.parameter.shape) for state, _, _ in self._parts}
        wrong = [
            f"{state.record.name} has shape {list(shapes[state.record.name])}, and must keep {list(state.record.shape)}"
            for state, _, _ in self._parts
            if shapes[state.record.name] != tuple(state.record.shape)
        ]
        reports = gather_reports(RankReport({"parameters": list(shapes)}, error="; ".join(wrong) or None))
        check_reports(reports, title="GatheredParameters: the ranks hold different parameters, and nothing was written")
        if wrong:
            raise EngineError(f"GatheredParameters: {'; '.join(wrong)}; nothing was written")
