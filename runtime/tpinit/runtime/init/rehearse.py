"""Whether `initialize` keeps a copy of the model, to repeat the dry run for forwards that planning has not seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from tpinit.runtime.groups.agreement import describe_error
from tpinit.runtime.init.verify import is_swept
from tpinit.runtime.planning.analysis.known_code import unknown_code
from tpinit.runtime.planning.check.rehearsal import Rehearsal
from tpinit.runtime.planning.schema import Plan

__all__ = ["copy_to_rehearse"]

_log = logging.getLogger("tpinit")


def copy_to_rehearse(
    model: nn.Module, plan: Plan, device: torch.device, verify: str | None, example: Mapping[str, Any] | None
) -> Rehearsal | None:
    """Return a copy of a model of unknown code, to repeat the dry run on; None for any other, and if it has no copy.

    A class that docs/models.md lists is not copied, also where code of it was replaced: the probe has compared that.
    """
    if plan.tp_size == 1 or verify in (None, "none") or is_swept(model):
        return None
    reason = unknown_code(model, example)
    if reason is None:
        return None
    try:
        return Rehearsal(model, plan, device)
    except Exception as error:  # of the model's own code
        _log.warning(
            "the model has code of its own (%s), and can't be copied (%s): what its forward does other than in the "
            "small batch of planning is not checked",
            reason,
            describe_error(error),
        )
        return None
