"""Whether `initialize` probes a model before it is sharded, and what the result does."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.groups.agreement import RankReport, describe_error, gather_reports
from tpinit.runtime.groups.process_groups import ParallelGroups
from tpinit.runtime.init.probe import VARIANTS, Reference, run_unsharded, sharded_difference
from tpinit.runtime.init.swept_classes import SWEPT_CLASSES
from tpinit.runtime.planning.analysis.example_inputs import unwrap_adapters
from tpinit.runtime.planning.analysis.known_code import unknown_code
from tpinit.runtime.planning.schema import Plan

__all__ = ["VERIFY_MODES", "probe_reason", "verify_plan"]

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
    if _is_swept(model):
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


def _is_swept(model: nn.Module) -> bool:
    """Return whether a model, without its adapters, is of a class that docs/models.md lists as exact."""
    kind = type(unwrap_adapters(model)[1])
    return kind.__module__.startswith("transformers.") and kind.__qualname__ in SWEPT_CLASSES


def verify_plan(
    model: nn.Module,
    plan: Plan,
    groups: ParallelGroups,
    device: torch.device,
    verify: str | None,
    example: Mapping[str, Any] | None,
) -> None:
    """Probe a model if `verify` or its code asks for it. Every rank of the world must call this.

    Raises PlanError, with the same text on every rank, if the probe finds a difference on any rank. If the unsharded
    model can't be probed, "probe" raises PlanError too, and "auto" writes a line to the log.
    """
    own_reason = probe_reason(model, verify, example) if groups.tp.group is not None else None
    reason = _first(own_reason)
    if reason is None or groups.tp.group is None:
        return
    position = replace(plan, tp_rank=groups.tp.position)
    for variant in VARIANTS[: 1 if _is_swept(model) else None]:
        problem = _probe(model, position, groups, device, example, variant)
        if problem is None or variant != VARIANTS[0]:
            continue
        if verify == "probe":
            raise PlanError(f'the model can\'t be probed ({problem}); pass a batch as `example`, or verify="none"')
        _log.warning("the model can't be probed (%s), though %s: only the dry run has checked it", problem, reason)
        return
    _log.info('probed the plan, because %s; verify="none" leaves the probe out', reason)


def _probe(
    model: nn.Module,
    plan: Plan,
    groups: ParallelGroups,
    device: torch.device,
    example: Mapping[str, Any] | None,
    variant: str,
) -> str | None:
    """Return why the unsharded model does not run on a variant of the batch; None if both models gave the same.

    Raises PlanError if they did not. Every rank of the world must call this.
    """
    differences = ""
    for dtype in (torch.float32, torch.float64):  # in fp32 alone, rounding may grow in a deep model
        reference: Reference | None = None
        failure = None
        try:
            reference = run_unsharded(model, plan, device, example, dtype, variant)
        except Exception as error:  # the model can't be copied, or its small forward gives nothing to compare
            failure = describe_error(error)
        problem = _first(failure)
        if problem is not None or reference is None:
            if differences:
                break
            return problem
        found = sharded_difference(model, plan, groups, device, reference)
        reports = gather_reports(RankReport(error=found))
        texts = [f"rank {rank}: {report.error}" for rank, report in enumerate(reports) if report.error is not None]
        if not texts:
            return None
        differences = differences or "; ".join(texts)
    where = "" if variant == VARIANTS[0] else f" on {variant}"
    raise PlanError(f"the sharded model differs from the unsharded one{where}, and nothing was changed: {differences}")


def _first(text: str | None) -> str | None:
    """Return the first text that a rank of the world has, on every rank; None if none has one."""
    reports = gather_reports(RankReport(error=text))
    return next((report.error for report in reports if report.error is not None), None)
