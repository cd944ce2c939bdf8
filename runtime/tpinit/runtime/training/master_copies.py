"""The fp32 master copies of bf16 and fp16 parameters in the state of their optimizer."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch.optim import Optimizer
from tpinit.runtime.training.param_state import ParamState

__all__ = ["MASTER", "hide_masters", "load_masters"]

MASTER = "master_param"
"""The key of the fp32 master copy in the state of a bf16 or fp16 parameter."""

_log = logging.getLogger("tpinit")


def hide_masters(optimizer: Optimizer, states: Sequence[ParamState]) -> set[int]:
    """Take the master copies from the optimizer's state, which its own code must not see; return whose were there.

    An optimizer takes an empty state for that of a parameter without an update. Returns ids of ParamStates.
    """
    found = set()
    for state in states:
        entry = optimizer.state.get(state.parameter)
        if isinstance(entry, dict) and entry.pop(MASTER, None) is not None:
            found.add(id(state))
    return found


@torch.no_grad()
def load_masters(optimizer: Optimizer, states: Sequence[ParamState]) -> None:
    """Copy the loaded master copies to the states' targets. Without one the target is the parameter in fp32."""
    missing = []
    for state in states:
        entry = optimizer.state.get(state.parameter)
        entry = entry if isinstance(entry, dict) else {}
        loaded = entry.pop(MASTER, None)
        if not state.has_master:
            continue
        state.target.copy_(state.parameter if loaded is None else loaded)
        if loaded is not None:
            entry[MASTER] = state.target.detach()
        elif entry:
            missing.append(state.record.name)
    if missing:
        _log.warning(
            "the loaded optimizer state has no %s for %d parameters (the first is %s): training goes on from the "
            "parameters in half precision",
            MASTER,
            len(missing),
            missing[0],
        )
