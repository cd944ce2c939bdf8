"""Before each backward: does the loss read a parameter of which a rank has a part outside of the model's forward?

A penalty on such parameters (`sum(p.norm() for p in model.parameters())`), or a loss that multiplies by the weight of
the head itself, would compute with one rank's part as if it were the whole. The graph of the loss shows it: what reads
such a parameter was made by a forward of the model, or by `engine.sum_over_parameters`, which adds up all ranks' parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tpinit.runtime.errors import EngineError
from tpinit.runtime.internals.autograd_private import inputs_of, node_number
from tpinit.runtime.internals.torch_private import backward_number
from tpinit.runtime.training.gradient_parts import mark_part
from tpinit.runtime.training.sharded_tensors import ShardedTensors, sharded_models

__all__ = ["checked_backward", "marked_gradients"]


@contextmanager
def checked_backward(nodes: list[Any], leaves: list[torch.Tensor]) -> Iterator[None]:
    """Run a backward if neither the graph behind `nodes`, nor one of the leaf tensors `leaves`, reads such a parameter.

    Raises EngineError if one does. It looks at the nodes that are outside of the model's forwards, and at those inside
    if an input needs a gradient. A backward inside another one runs a part of a forward again, and is not looked at.
    """
    models = [model for model in sharded_models() if model.parts]
    if not models or backward_number() != -1:
        yield
        return
    for model in models:
        model.own_nodes.end_lone()
        for leaf in leaves:
            _refuse_part(model, leaf, "backward")
    _check_reads(nodes, models)
    for model in models:
        model.own_nodes.begin_lone()  # what a backward adds to a graph (create_graph), the layers refuse themselves
    try:
        yield
    finally:
        for model in models:
            model.own_nodes.end_lone()
            model.hooks.mark()


def marked_gradients(inputs: Sequence[Any], gradients: Sequence[Any]) -> tuple[Any, ...]:
    """Return what `torch.autograd.grad` returns, those of sharded parameters as parts (`GradientPart`)."""
    parts = {key: one for model in sharded_models() for key, one in model.parts.items() if one.dim is not None}
    pairs = [(parts.get(id(one)), gradient) for one, gradient in zip(inputs, gradients, strict=True)]
    return tuple(one if one is None or record is None else mark_part(one, record) for record, one in pairs)


def _check_reads(nodes: list[Any], models: list[ShardedTensors]) -> None:
    seen = set(nodes)
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        number = node_number(node)
        spans = [model.own_nodes.find(number) for model in models]
        if True in spans:
            continue
        for inner, parameter in inputs_of(node):
            if parameter is not None:
                for model, span in zip(models, spans, strict=True):
                    if span is None:
                        _refuse_part(model, parameter, type(node).__name__)
            elif inner not in seen:
                seen.add(inner)
                waiting.append(inner)


def _refuse_part(model: ShardedTensors, parameter: torch.Tensor, reader: str) -> None:
    record = model.parts.get(id(parameter))
    if record is None:
        return
    size = model.groups.tp.size
    why = (
        f"the gradient would be added up over the {size} ranks of the TP group, as those of its forward are"
        if record.dim is None
        else f"this rank has a part of it, and would compute with it as if it were the whole {list(record.shape)}"
    )
    raise EngineError(
        f"backward: the loss reads {record.name} outside of a forward of the model ({reader}): {why}. Give the terms "
        "of a penalty to engine.sum_over_parameters, take parameter.detach() where no gradient is wanted, and call the "
        "module that holds the parameter instead of computing with it yourself"
    )
