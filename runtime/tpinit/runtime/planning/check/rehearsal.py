"""Repeats the dry run of a plan on inputs of the training, when the model itself has been sharded already.

Planning sees one small batch. A forward of unknown code may do something else for another keyword, size, mode, count of
calls or attribute. So a copy of the model without weights is kept, and the dry run is repeated on it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.internals.torch_private import tree_map_only
from tpinit.runtime.planning.analysis.attachments import Attachments
from tpinit.runtime.planning.analysis.copies import apart_from
from tpinit.runtime.planning.analysis.dropout_off import preserved_rng
from tpinit.runtime.planning.analysis.fake_forward import forward_context, without_hooks
from tpinit.runtime.planning.analysis.linears import find_linears
from tpinit.runtime.planning.analysis.off_meta import on_device
from tpinit.runtime.planning.analysis.trace import Trace, trace_forward
from tpinit.runtime.planning.check.plan_problems import plan_differences
from tpinit.runtime.planning.check.user_plan import rebuilt_plan
from tpinit.runtime.planning.check.visibility import check_visibility
from tpinit.runtime.planning.schema import LayerKind, Plan

__all__ = ["Rehearsal"]

_ELEMENTS = 1 << 28  # of the recorded activations of linear layers: 1 GiB in fp32
_CPU = torch.device("cpu")
_SHOWN = 3  # differences in an error
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


class Rehearsal:
    """A copy of a model without weights, with its plan. Make it before the model is sharded.

    `device` is where the model trains, and where the inputs will be. Raises what `copy.deepcopy` of the model raises.
    """

    def __init__(self, model: nn.Module, plan: Plan, device: torch.device = _CPU) -> None:
        self._device = device
        self.plan = replace(plan, tp_rank=0)
        meta = {
            id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
            for parameter in model.parameters()
        }
        with without_hooks(model):
            self.model: nn.Module = copy.deepcopy(model, dict[int, Any](meta)).float()
        self._features = sum(linear.in_features + linear.out_features for linear in find_linears(self.model).values())

    def check(self, inputs: Mapping[str, Any], like: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
        """Repeat the dry run on the keyword arguments of one forward.

        `like` is the model in training: its buffers and what of it is trainable are taken over. `attributes` are those
        that changed since the plan was made, by the name of their module.

        Raises PlanError if the plan is wrong for this forward, and one that says `forward_failed` if the forward does
        not run on the copy.
        """
        kind = self._device.type
        with ExitStack() as stack:
            if torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
            stack.enter_context(on_device(self.model, self._device))
            stack.enter_context(without_hooks(self.model))
            stack.enter_context(preserved_rng(self._device))
            stack.enter_context(apart_from(like))
            self._take_over(like, attributes)
            given = self._shortened(tree_map_only(torch.Tensor, _own, _known(dict(inputs))))
            trace, given = self._trace(given)
            problems = list(self._differences(given, trace))
            if problems:
                raise PlanError("; ".join(problems[:_SHOWN]))
            check_visibility(self.plan, Attachments(), trace)

    def _take_over(self, like: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
        """Give the copy the state of the model in training. What is set is undone when the rehearsal ends."""
        trainable = {name: parameter.requires_grad for name, parameter in like.named_parameters()}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(trainable.get(name, parameter.requires_grad))
        held = dict(like.named_buffers())
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                if name in held and not buffer.is_meta and held[name].shape == buffer.shape:
                    buffer.copy_(held[name])
        for name, values in attributes.items():
            self.model.get_submodule(name).__dict__.update(values)

    def _shortened(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs, with two rows of the batch if all of it would take much memory.

        Raises PlanError (`forward_failed`) if two rows do too.
        """
        tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor) and value.dim()]
        rows = max((len(value) for value in tensors), default=1)
        tokens = max((value.numel() if value.dim() < 3 else value[..., 0].numel() for value in tensors), default=1)
        if tokens * self._features <= _ELEMENTS:
            return inputs
        if tokens // rows * min(rows, 2) * self._features > _ELEMENTS:
            raise PlanError(f"its activations of {tokens} tokens take too much memory", forward_failed=True)
        return {
            name: value[:2] if isinstance(value, torch.Tensor) and value.dim() and len(value) == rows else value
            for name, value in inputs.items()
        }

    def _trace(self, inputs: dict[str, Any]) -> tuple[Trace, dict[str, Any]]:
        """Return the trace, and the inputs without labels, if the forward runs without them.

        In the mode that the copy is in; in evaluation mode if it draws numbers that differ in each run.
        """
        context = forward_context(self.model, None)
        context.watches_state = True
        try:
            trace = trace_forward(self.model, inputs, context)
            if trace.nondeterministic:
                self.model.eval()
                trace = trace_forward(self.model, inputs, context)
        except PlanError:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {str(error)[:300]}"
            raise PlanError(
                f"a copy of the model without weights does not run on it: {text}", forward_failed=True
            ) from error
        unlabelled = {name: value for name, value in inputs.items() if name != "labels"}
        if len(unlabelled) < len(inputs):
            try:
                plain = trace_forward(self.model, unlabelled, context)
            except Exception:  # it needs them
                return trace, inputs
            plain.add_labelled(trace)
            return plain, unlabelled
        return trace, inputs

    def _differences(self, inputs: dict[str, Any], trace: Trace) -> Iterator[str]:
        """Yield where the plan differs from the one that follows from this forward, in what the forward reaches."""
        plan = self.plan
        called = {*trace.sources, *trace.expert_outputs}
        called |= {layer.module for layer in plan.layers if layer.kind is LayerKind.EMBEDDING}
        layers = {layer.module: layer for layer in plan.layers if layer.module in called}
        blocks = [one for one in plan.blocks if any(f"{name}.".startswith(f"{one.module}.") for name in layers)]
        plan = replace(plan, layers=tuple(layers.values()), blocks=tuple(blocks))
        rebuilt = rebuilt_plan(plan, self.model, inputs, trace)
        reached = set(trace.reach_parameter)
        reached |= {f"{name}.{own}" for name in called for own in ("weight", "bias")}

        def compared(one: Plan) -> Plan:
            return replace(
                one,
                parameters=tuple(record for record in one.parameters if not reached.isdisjoint(record.names)),
                # A forward that draws no numbers may run in a region with its own random state.
                layers=tuple(replace(layer, draws_random=False) for layer in one.layers),
                sequences=tuple(replace(sequence, draws_random=False) for sequence in one.sequences),
            )

        drawing = [layer.module for layer in rebuilt.layers if layer.draws_random]
        yield from (
            f"{name}: it draws random numbers for this rank's part"
            for name in drawing
            if name in layers and not layers[name].draws_random
        )
        yield from plan_differences(compared(plan), compared(rebuilt))


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy: a forward may write to its inputs. In fp32 where it is shorter, as the copy of the model is."""
    values = tensor.detach().clone()
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _known(value: Any) -> Any:
    """Return an input of tensors, plain values and containers. Raises PlanError for one that may hold a rank's part."""
    if isinstance(value, (torch.Tensor, *_PLAIN)):
        return value
    if type(value) is dict:
        return {key: _known(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_known(item) for item in value)
    raise PlanError(f"an input is a {type(value).__qualname__}", forward_failed=True)
