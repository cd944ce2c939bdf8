"""Whether `initialize` probes a model before it is sharded, and what the result does."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.groups.agreement import describe_error
from tpinit.runtime.groups.process_groups import ParallelGroups
from tpinit.runtime.groups.protocol import Steps, tell
from tpinit.runtime.init.probe import VARIANTS, Reference, run_unsharded, sharded_difference
from tpinit.runtime.init.swept_classes import SWEPT_CLASSES
from tpinit.runtime.planning.analysis.example_inputs import unwrap_adapters
from tpinit.runtime.planning.analysis.known_code import unknown_code
from tpinit.runtime.planning.schema import Plan

__all__ = ["VERIFY_MODES", "Probe", "is_swept", "probe_reason", "probe_steps"]

VERIFY_MODES = ("auto", "probe", "rehearsal", "none")
_AUTO_ELEMENTS = 1 << 30  # of all parameters: the two fp32 copies of the probe then take 8 GiB
_log = logging.getLogger("tpinit")


def probe_reason(model: nn.Module, verify: str | None, example: Mapping[str, Any] | None) -> str | None:
    """Return why `verify` probes a model, in words; None if it does not.

    "auto" probes a class that docs/models.md does not list as exact, and a model with code that is not known, unless
    it has more than 2^30 parameters.
    """
    if verify == "probe":
        return 'verify is "probe"'
    if verify != "auto":
        return None
    name = type(unwrap_adapters(model)[1]).__qualname__
    if is_swept(model):
        unknown = unknown_code(model, example)
        reason = None if unknown is None else f"the model runs code that is not transformers' own ({unknown})"
    else:
        reason = f"{name} is not among the classes that were compared sharded and unsharded (docs/models.md)"
    elements = sum(parameter.numel() for parameter in model.parameters())
    if reason is not None and elements > _AUTO_ELEMENTS:
        _log.warning(
            "%s, and its %d parameters are too many for a probe by default (two fp32 copies on every rank): pass "
            'verify="probe" to compare it, or verify="none" to leave out this line',
            reason,
            elements,
        )
        return None
    return reason


def is_swept(model: nn.Module) -> bool:
    """Return whether a model, without its adapters, is of a class that docs/models.md lists as exact."""
    kind = type(unwrap_adapters(model)[1])
    return kind.__module__.startswith("transformers.") and kind.__qualname__ in SWEPT_CLASSES


@dataclass(slots=True)
class Probe:
    """What one rank does to compare its sharded model with the unsharded one: see `probe_steps`."""

    model: nn.Module
    plan: Plan
    groups: ParallelGroups
    device: torch.device
    verify: str | None
    example: Mapping[str, Any] | None
    _reference: Reference | None = None

    def variants(self) -> Sequence[str]:
        """Return the variants of the batch that are tried; equal on all ranks."""
        return VARIANTS[: 1 if is_swept(self.model) else None]

    def reason(self) -> str | None:
        """Return why this rank wants the comparison; None if it does not."""
        return probe_reason(self.model, self.verify, self.example)

    def run_whole(self, variant: str, dtype: torch.dtype) -> str | None:
        """Run a copy of the unsharded model; return why it can't be run on this variant."""
        try:
            self._reference = run_unsharded(self.model, self.plan, self.device, self.example, dtype, variant)
        except Exception as error:  # the model can't be copied, or its small forward gives nothing to compare
            return describe_error(error)
        return None

    def compare(self) -> str | None:
        """Run a sharded copy on what the unsharded one ran; return what differs. The ranks of a TP group call this."""
        assert self._reference is not None
        return sharded_difference(self.model, self.plan, self.groups, self.device, self._reference)


def probe_steps(probe: Probe, verify: str | None) -> Steps[None]:
    """Probe a model if `verify` or its code asks for it. Every rank of the world must run this.

    Raises PlanError, with the same text on every rank, if the probe finds a difference on any rank. If the unsharded
    model can't be probed, "probe" raises PlanError too, and "auto" writes a line to the log.
    """
    reason = _first((yield from tell("probe: reason", probe.reason)))
    if reason is None:
        return
    for variant in probe.variants():
        problem = yield from _probe_variant(probe, variant)
        if problem is None or variant != VARIANTS[0]:
            continue
        if verify == "probe":
            raise PlanError(f'the model can\'t be probed ({problem}); pass a batch as `example`, or verify="none"')
        _log.warning("the model can't be probed (%s), though %s: only the dry run has checked it", problem, reason)
        return
    _log.info('probed the plan, because %s; verify="none" leaves the probe out', reason)


def _probe_variant(probe: Probe, variant: str) -> Steps[str | None]:
    """Return why the unsharded model does not run on a variant of the batch; None if both models gave the same.

    Raises PlanError if they did not.
    """
    differences = ""
    for dtype in (torch.float32, torch.float64):  # in fp32 alone, rounding may grow in a deep model
        run_whole = functools.partial(probe.run_whole, variant, dtype)
        problem = _first((yield from tell("probe: unsharded model", run_whole)))
        if problem is not None and not differences:
            return problem
        if problem is not None:
            break
        found = yield from tell("probe: sharded model", probe.compare)
        texts = [f"rank {rank}: {text}" for rank, text in enumerate(found) if text is not None]
        if not texts:
            return None
        differences = differences or "; ".join(texts)
    where = "" if variant == VARIANTS[0] else f" on {variant}"
    raise PlanError(f"the sharded model differs from the unsharded one{where}, and nothing was changed: {differences}")


def _first(texts: Sequence[str | None]) -> str | None:
    """Return the text of the lowest rank that has one; None if none has one."""
    return next((text for text in texts if text is not None), None)
