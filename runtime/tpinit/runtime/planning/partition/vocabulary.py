"""The vocab-parallel modules of a model: the token embedding and the output head, tied or not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tpinit.runtime.internals.torch_private import PlainDispatchMode, parameters_of, storage_key, tree_leaves
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.analysis.trace import Trace
from tpinit.runtime.planning.schema import LayerKind

__all__ = ["Vocabulary", "find_vocabulary"]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The modules to shard by vocabulary: (name, kind, vocabulary size) each, and their parameters by name.

    `head_names` are the output heads of the model, sharded or not.
    """

    layers: tuple[tuple[str, LayerKind, int], ...] = ()
    parameters: tuple[tuple[str, nn.Parameter], ...] = ()
    head_names: tuple[str, ...] = ()


def find_vocabulary(
    model: nn.Module,
    linears: Mapping[str, LinearInfo],
    trace: Trace,
    tp_size: int,
    replicated: Collection[str] = (),
) -> Vocabulary:
    """Return the modules of a transformers model that can be sharded by vocabulary over `tp_size` ranks.

    An embedding can be if it only looks rows up (no norm limit, no gradient scaled by frequency, no sparse gradient);
    the head if it is a linear layer whose output is an output of the model. A weight is sharded in all modules that
    share it or in none, so a weight tied to one of the modules `replicated` is not sharded.
    """
    names = {id(module): name for name, module in model.named_modules()}
    embedding = _call_getter(model, "get_input_embeddings")
    head = _call_getter(model, "get_output_embeddings")
    head_name = names.get(id(head), "") if head is not None else ""
    heads = (head_name,) if head_name in linears and linears[head_name].out_dim == 0 else ()
    wanted: set[int] = set()  # ids of the weights to shard
    if isinstance(embedding, nn.Embedding):
        wanted.add(id(embedding.weight))
    if heads and head_name in trace.reach_output:
        assert isinstance(head, nn.Linear)
        wanted.add(id(head.weight))
    layers: list[tuple[str, LayerKind, int]] = []
    refused: set[int] = set()
    for name, module in model.named_modules():
        for parameter in parameters_of(module).values():
            if parameter is None or id(parameter) not in wanted:
                continue
            kind = _kind(name, module, parameter, heads)
            if kind is None or name in replicated or parameter.shape[0] < tp_size:
                refused.add(id(parameter))
            else:
                layers.append((name, kind, parameter.shape[0]))
    sharded = [layer for layer in layers if id(model.get_submodule(layer[0]).weight) not in refused]
    return Vocabulary(tuple(sharded), tuple(_parameters(model, [name for name, _, _ in sharded])), heads)


def _parameters(model: nn.Module, names: Collection[str]) -> list[tuple[str, nn.Parameter]]:
    """Return the weights and biases of some modules, with their names."""
    parameters: list[tuple[str, nn.Parameter]] = []
    for name in names:
        module = model.get_submodule(name)
        assert isinstance(module.weight, nn.Parameter)
        parameters.append((f"{name}.weight", module.weight))
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            parameters.append((f"{name}.bias", bias))
    return parameters


def _kind(name: str, module: nn.Module, parameter: nn.Parameter, heads: tuple[str, ...]) -> LayerKind | None:
    """Return the kind of vocab-parallel layer that a module becomes; None if it can't become one."""
    if isinstance(module, nn.Embedding) and module.weight is parameter:
        return LayerKind.EMBEDDING if _only_looks_up(module) else None
    return LayerKind.HEAD if name in heads else None


_CASTS = (
    "view",
    "_unsafe_view",
    "unsqueeze",
    "squeeze",
    "expand",
    "detach",
    "alias",
    "_to_copy",
    "clone",
    "lift_fresh",
)
_LOOK_UPS = frozenset(("embedding", "mul", "mul_", "scalar_tensor", *_CASTS))
"""The aten operations that an embedding may run: a lookup, its product with one number, views and casts."""


class _LookUpOperations(PlainDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    """Watches whether all operations are a lookup of rows and products with one number that is not trained."""

    def __init__(self, parameters: set[int]) -> None:
        super().__init__()
        self._parameters = parameters
        self.only_look_up = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self.only_look_up &= name in _LOOK_UPS
        self.only_look_up &= not any(storage_key(tensor) in self._parameters for tensor in tensors)
        if name.startswith("mul"):
            self.only_look_up &= sum(tensor.numel() > 1 for tensor in tensors) == 1
            self.only_look_up &= all(tensor.is_floating_point() for tensor in tensors)
        return func(*args, **(kwargs or {}))


def _only_looks_up(module: nn.Embedding) -> bool:
    """Return whether an embedding returns its rows, or its rows times one constant.

    Only then is the sum over the ranks, each of which returns zeros for the rows it does not hold, the same. A subclass
    runs on random rows, in training and evaluation mode: it must run the operations of a lookup only, read no other
    parameter, and set no attribute.
    """
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return False
    if type(module).forward is nn.Embedding.forward:
        return True
    rows = torch.randn((4, module.embedding_dim), generator=torch.Generator().manual_seed(0))
    before = dict(module.__dict__)
    others = {storage_key(parameter) for name, parameter in module.named_parameters() if name != "weight"}
    module.__dict__["weight"] = rows
    try:
        for training in (True, False):
            module.__dict__["training"] = training
            attributes = dict(module.__dict__)
            for ids in (torch.arange(4), torch.tensor([[3, 1, 1], [0, 2, 3]])):
                if not _looks_up(module, ids, rows, others) or module.__dict__ != attributes:
                    return False
    except Exception:  # the forward of the subclass does more than look rows up
        return False
    finally:
        module.__dict__.clear()
        module.__dict__.update(before)
    return True


def _looks_up(module: nn.Embedding, ids: torch.Tensor, rows: torch.Tensor, parameters: set[int]) -> bool:
    """Return whether the forward of an embedding runs a lookup only, and returns `rows` times one constant."""
    with torch.no_grad(), _LookUpOperations(parameters) as operations:
        output = module.forward(ids)
    expected = rows[ids]
    if not operations.only_look_up or not isinstance(output, torch.Tensor) or output.shape != expected.shape:
        return False
    ratio = output / expected
    return bool(torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-4))


def _call_getter(model: nn.Module, method: str) -> nn.Module | None:
    """Return the embedding that a method of a transformers model returns; None if it has none."""
    try:
        embedding = getattr(model, method)()
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return embedding if isinstance(embedding, nn.Module) else None
