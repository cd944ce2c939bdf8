"""Private names of torch's autograd: the numbers of the nodes of a graph, and the one function that runs a backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

__all__ = ["PRIVATE_NAMES", "inputs_of", "next_node_number", "node_number", "run_around_backward"]

PRIVATE_NAMES: dict[str, str] = {
    "torch.autograd._get_sequence_nr": "the number of the next node that this thread adds to a graph",
    "Node._sequence_nr": "the number of a node: nodes that one thread made are in order",
    "AccumulateGrad.variable": "the parameter whose gradient a node accumulates",
    "torch.autograd._engine_run_backward": "what backward and grad of torch.autograd call, and so each Tensor.backward",
}
"""Every private name, and private behaviour, of torch's autograd that the runtime leans on; and what for."""

_MARK = "tp_original"
_INPUTS = 3  # the place of the inputs of torch.autograd.grad among the arguments behind the outputs
_autograd: Any = torch.autograd


def next_node_number() -> int:
    """Return the number of the next node that this thread adds to a graph of autograd."""
    return int(_autograd._get_sequence_nr())


def node_number(node: Any) -> int:
    """Return the number of a node, in the order in which its thread made it."""
    return int(node._sequence_nr())


def inputs_of(node: Any) -> Iterator[tuple[Any, torch.Tensor | None]]:
    """Yield each node that a node passes gradients to, with the parameter if it accumulates one's gradient."""
    for inner, _ in node.next_functions:
        if inner is not None:
            yield inner, inner.variable if type(inner).__name__ == "AccumulateGrad" else None


def run_around_backward(
    around: Callable[[list[Any], list[torch.Tensor]], AbstractContextManager[None]],
    returned: Callable[[Sequence[Any], Sequence[Any]], tuple[Any, ...]],
) -> None:
    """Run each backward of this process in `around(nodes, leaves)`: the nodes and leaf tensors from which it starts.

    Also one inside another backward. What `torch.autograd.grad` returns is `returned(inputs, gradients)`. The first
    functions of the process stay.
    """
    original = _autograd._engine_run_backward
    if hasattr(original, _MARK):
        return

    def run(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        nodes = [getattr(output, "node", None) or getattr(output, "grad_fn", None) for output in outputs]
        leaves = [output for output, node in zip(outputs, nodes, strict=True) if node is None]
        with around([node for node in nodes if node is not None], leaves):
            found = original(outputs, *args, **kwargs)
        return found if kwargs.get("accumulate_grad", True) else returned(args[_INPUTS], found)

    setattr(run, _MARK, original)
    _autograd._engine_run_backward = run
