"""The vocab-parallel modules of a model: the token embedding and the output head, tied or not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from tpinit.runtime.internals.torch_private import parameters_of
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


def _only_looks_up(module: nn.Embedding) -> bool:
    """Return whether an embedding returns its rows, or its rows times one constant.

    Only then is the sum over the ranks, each of which returns zeros for the rows it does not hold, the same.
    """
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return False
    if type(module).forward is nn.Embedding.forward:
        return True
    device = next((buffer.device for buffer in module.buffers()), torch.device("cpu"))  # of a scale, for example
    rows = torch.randn((4, module.embedding_dim), generator=torch.Generator().manual_seed(0)).to(device)
    module.__dict__["weight"] = rows
    try:
        with torch.no_grad():
            output = module(torch.arange(4, device=device))
    except Exception:  # the forward of the subclass does more than look rows up
        return False
    finally:
        del module.__dict__["weight"]
    if not isinstance(output, torch.Tensor) or output.shape != rows.shape:
        return False
    ratio = output / rows
    return bool(torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-4))


def _call_getter(model: nn.Module, method: str) -> nn.Module | None:
    """Return the embedding that a method of a transformers model returns; None if it has none."""
    try:
        embedding = getattr(model, method)()
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return embedding if isinstance(embedding, nn.Module) else None
