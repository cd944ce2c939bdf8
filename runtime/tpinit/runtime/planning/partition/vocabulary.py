"""What is cut by vocabulary: the embedding of the tokens and the output head, tied or not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.analysis.trace import Trace
from tpinit.runtime.planning.schema import LayerKind

__all__ = ["Vocabulary", "find_vocabulary"]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The modules that are cut by vocabulary (name, kind, size), and their parameters by name."""

    layers: tuple[tuple[str, LayerKind, int], ...] = ()
    parameters: tuple[tuple[str, nn.Parameter], ...] = ()
    head_names: tuple[str, ...] = ()


def find_vocabulary(
    model: nn.Module,
    matrices: Mapping[str, LinearInfo],
    seen: Trace,
    tp_size: int,
    whole: Collection[str] = (),
) -> Vocabulary:
    """Return what of a transformers model can be cut by vocabulary: every module that holds such a weight, or none.

    An embedding is cut where it only looks up (no norm is kept, no gradient is scaled by frequency); the head
    where it is a linear layer whose output ends the model. What is tied to a module of `whole` stays whole.
    """
    names = {id(module): name for name, module in model.named_modules()}
    embedding = _asked(model, "get_input_embeddings")
    head = _asked(model, "get_output_embeddings")
    head_name = names.get(id(head), "") if head is not None else ""
    heads = (head_name,) if head_name in matrices and matrices[head_name].out_dim == 0 else ()
    wanted: dict[int, nn.Parameter] = {}
    if isinstance(embedding, nn.Embedding):
        assert isinstance(embedding.weight, nn.Parameter)
        wanted[id(embedding.weight)] = embedding.weight
    if heads and head_name in seen.reach_output:
        assert isinstance(head, nn.Linear)
        assert isinstance(head.weight, nn.Parameter)
        wanted[id(head.weight)] = head.weight
    layers: list[tuple[str, LayerKind, int]] = []
    refused: set[int] = set()
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is None or id(parameter) not in wanted:
                continue
            kind = _kind(name, module, parameter, heads)
            if kind is None or name in whole or parameter.shape[0] < tp_size:
                refused.add(id(parameter))
            else:
                layers.append((name, kind, parameter.shape[0]))
    kept = []
    for name, kind, size in layers:
        weight = model.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        if id(weight) not in refused:
            kept.append((name, kind, size))
    parameters: list[tuple[str, nn.Parameter]] = []
    for name, _, _ in kept:
        module = model.get_submodule(name)
        assert isinstance(module.weight, nn.Parameter)
        parameters.append((f"{name}.weight", module.weight))
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            parameters.append((f"{name}.bias", bias))
    return Vocabulary(tuple(kept), tuple(parameters), heads)


def _kind(name: str, module: nn.Module, parameter: nn.Parameter, heads: tuple[str, ...]) -> LayerKind | None:
    if isinstance(module, nn.Embedding) and module.weight is parameter:
        return LayerKind.EMBEDDING if _only_looks_up(module) else None
    return LayerKind.HEAD if name in heads else None


def _only_looks_up(module: nn.Embedding) -> bool:
    """Tell whether an embedding gives its rows, times one number at most: a sum over ranks commutes with that alone."""
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return False
    if type(module).forward is nn.Embedding.forward:
        return True
    rows = torch.randn((4, module.embedding_dim), generator=torch.Generator().manual_seed(0))
    module.__dict__["weight"] = rows
    try:
        with torch.no_grad():
            found = module(torch.arange(4))
    except Exception:  # whatever it does with its rows, it is more than looking up
        return False
    finally:
        del module.__dict__["weight"]
    if not isinstance(found, torch.Tensor) or found.shape != rows.shape:
        return False
    ratio = found / rows
    return bool(torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-4))


def _asked(model: nn.Module, method: str) -> nn.Module | None:
    """Ask a transformers model for one of its embeddings; None where it has none, or can't say."""
    try:
        found = getattr(model, method)()
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return found if isinstance(found, nn.Module) else None
