"""How DeepSpeed's AutoTP cuts the parameters of a model: as its checkpoints say, and as it cuts a transformers model.

DeepSpeed 0.19 writes into a checkpoint which block of each whole parameter a rank holds (`affine_map`). A block is here
a box that is cut along one dimension; nothing else is accepted. For a new checkpoint the cuts follow AutoTP's own rule
for models with a transformers `tp_plan`: columns and rows by whole key/value heads in attention, evenly elsewhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from tpinit.runtime.checkpoint.places import uncovered
from tpinit.runtime.errors import CheckpointError
from tpinit.runtime.internals.transformers_private import tp_plans
from tpinit.runtime.shards import shard
from tpinit.runtime.slicing import Pieces

__all__ = ["TensorCut", "cuts_of_model", "fused_in_deepspeed", "read_cuts", "written_cuts"]

INFO = "universal_checkpoint_info"
_VERSION = 1
_COLUMN = ("colwise", "colwise_rep", "colwise_gather_output")
_WHOLE = ("replicated_with_grad_allreduce", "embedding_rowwise")
_KV_HEADS = (
    "num_key_value_heads", "num_kv_heads", "multi_query_group_num", "n_head_kv", "kv_n_heads", "num_attention_heads",
    "n_heads", "attention_heads",
)  # fmt: skip
_MLP = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
_HEADS = ("lm_head", "embed_out")
_FUSED = (
    "qkv_proj", "query_key_value", "attn.Wqkv", "self_attn.W_pack", "c_attn", "gate_up_proj", "dense_h_to_4h",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorCut:
    """How ranks hold a tensor: `pieces[r]` are rank r's (offset, length) along `dim`; None: all hold all of it."""

    shape: tuple[int, ...]
    dim: int | None = None
    pieces: tuple[Pieces, ...] = ()

    def local_shape(self, rank: int) -> tuple[int, ...]:
        """Return the shape of a rank's part."""
        if self.dim is None:
            return self.shape
        length = sum(length for _, length in self.pieces[rank])
        return tuple(length if dim == self.dim else size for dim, size in enumerate(self.shape))


def fused_in_deepspeed(name: str) -> bool:
    """Return whether AutoTP may cut this parameter block by block, which the shapes of its parts do not show."""
    return any(part in name for part in _FUSED)


# --- what a checkpoint says --------------------------------------------------------------------------------------


def read_cuts(info: Any, names: Iterable[str], tp_size: int) -> dict[str, TensorCut]:
    """Return the cut of each parameter that a checkpoint describes. Raises CheckpointError for one it can't have."""
    if info is None:
        return {}
    try:
        maps = info.get("affine_map") or {"version": _VERSION, "params": {}}
        if maps["version"] != _VERSION:
            raise ValueError(f"affine_map has version {maps['version']!r}, and this release reads {_VERSION}")
        unsupported = info.get("autotp_unsupported_parameter_patterns") or {}
        found = {}
        for name in names:
            pattern = f"^{re.escape(name)}$"
            if pattern in unsupported:
                raise ValueError(f"DeepSpeed can't say how {name} is cut: {str(unsupported[pattern])[:200]}")
            if pattern in maps["params"]:
                found[name] = _read_cut(name, maps["params"][pattern], tp_size)
        return found
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{INFO} of the checkpoint can't be read: {why}") from error


def _read_cut(name: str, entry: Any, tp_size: int) -> TensorCut:
    shape = _sizes(entry["logical_shape"])
    ranks = {int(rank): value for rank, value in entry["ranks"].items()}
    if sorted(ranks) != list(range(tp_size)):
        raise ValueError(f"{name} is held by ranks {sorted(ranks)}, and there are {tp_size} files")
    cut = {
        dim
        for value in ranks.values()
        for part in (value["shard_shape"], *(piece["shape"] for piece in value["pieces"]))
        for dim, (size, whole) in enumerate(zip(_sizes(part), shape, strict=True))
        if size != whole
    }
    if len(cut) > 1:
        raise ValueError(f"{name} is cut along the dimensions {sorted(cut)}, and only one is supported")
    dim = cut.pop() if cut else None
    pieces = tuple(_read_pieces(name, ranks[rank], shape, dim) for rank in range(tp_size))
    if dim is None:
        return TensorCut(shape)
    taken = [piece for of_rank in pieces for piece in of_rank]
    if any(offset + length > shape[dim] for offset, length in taken) or uncovered(0, shape[dim], taken):
        raise ValueError(f"the pieces of {name} do not cover it")
    return TensorCut(shape, dim, pieces)


def _read_pieces(name: str, value: Any, shape: tuple[int, ...], dim: int | None) -> Pieces:
    """Return the pieces of one rank, in the order in which its part holds them."""
    local = _sizes(value["shard_shape"])
    found = []
    for piece in value["pieces"]:
        size = _sizes(piece["shape"])
        if not math.prod(size):
            continue
        if float(piece.get("scale", 1.0)) != 1.0:
            raise ValueError(f"{name} is stored divided by a number, which is not supported")
        begin = _place(name, piece["source"], shape, size, dim)
        found.append((_place(name, piece["dest"], local, size, dim), begin, size[dim] if dim is not None else 0))
    found.sort()
    if dim is None:
        if len(found) > 1 or local != shape:
            raise ValueError(f"the pieces of {name} overlap")
        return ()
    end = 0
    for start, _, length in found:
        if start != end:
            raise ValueError(f"the pieces of {name} leave a gap in a rank's part, or overlap")
        end += length
    if local != tuple(end if axis == dim else size for axis, size in enumerate(shape)):
        raise ValueError(f"the pieces of {name} do not fill a rank's part of shape {local}")
    return tuple((begin, length) for _, begin, length in found)


def _place(name: str, entry: Any, whole: tuple[int, ...], size: tuple[int, ...], dim: int | None) -> int:
    """Return where a piece begins along `dim` in a dense tensor, given its offset and strides in elements."""
    offset, strides = entry
    wanted = _strides(whole)
    if any(extent > 1 and step != own for extent, step, own in zip(size, strides, wanted, strict=True)):
        raise ValueError(f"a piece of {name} is no box of the tensor")
    step = wanted[dim] if dim is not None else 1
    if type(offset) is not int or offset < 0 or offset % step or (dim is None and offset):
        raise ValueError(f"a piece of {name} begins inside of a row")
    return offset // step


def _sizes(values: Any) -> tuple[int, ...]:
    found = tuple(values)
    if any(type(size) is not int or not 0 <= size < 1 << 63 for size in found):
        raise ValueError(f"{str(found)[:100]} is no shape")
    return found


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


def written_cuts(cuts: Mapping[str, TensorCut], tp_size: int) -> dict[str, Any]:
    """Return cuts as DeepSpeed writes them: the inverse of `read_cuts`."""
    params = {f"^{re.escape(name)}$": _written_cut(cut, tp_size) for name, cut in cuts.items()}
    return {"universal_checkpoint_version": 0.4, "affine_map": {"version": _VERSION, "params": params}}


def _written_cut(cut: TensorCut, tp_size: int) -> dict[str, Any]:
    ranks: dict[int, Any] = {}
    everyone = list(range(tp_size))
    whole = ((0, cut.shape[0]),) if cut.shape else ((0, 1),)
    strides = _strides(cut.shape)
    for rank in everyone:
        local, start, entries = cut.local_shape(rank), 0, []
        for offset, length in whole if cut.dim is None else cut.pieces[rank]:
            dim = cut.dim or 0
            size = [length if axis == dim else extent for axis, extent in enumerate(cut.shape)]
            step, own = (strides[dim], _strides(local)[dim]) if cut.shape else (1, 1)
            entries.append(
                {
                    "shape": size,
                    "source": [offset * step, list(strides)],
                    "dest": [start * own, list(_strides(local))],
                    "locations": everyone if cut.dim is None else [rank],
                }
            )
            start += length
        ranks[rank] = {"shard_shape": list(local), "pieces": entries}
    return {"logical_shape": list(cut.shape), "ranks": ranks}


# --- what AutoTP would do ----------------------------------------------------------------------------------------


def cuts_of_model(model: Any, tp_size: int) -> dict[str, TensorCut]:
    """Return how DeepSpeed 0.19.8 cuts each parameter of a transformers model (it may be on the meta device).

    Raises CheckpointError for a model without a `tp_plan` or with styles that AutoTP refuses.
    """
    own, of_base, _ = tp_plans(model)
    plan = {**of_base, **own}
    kind = type(model).__qualname__
    if tp_size > 1 and not plan:
        raise CheckpointError(f"a {kind} has no tp_plan, and DeepSpeed guesses how to cut it: {_LIKE}")
    styles = {re.compile(_regex(pattern)): style.lower() for pattern, style in plan.items()}
    unknown = sorted(set(styles.values()) - {*_COLUMN, "rowwise", *_WHOLE})
    if tp_size > 1 and unknown:
        raise CheckpointError(f"DeepSpeed refuses the tp_plan of a {kind}, for {', '.join(unknown)}: {_LIKE}")
    heads = _key_value_heads(model.config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    cuts = {name: TensorCut(tuple(parameter.shape)) for name, parameter in model.named_parameters()}
    if tp_size == 1:
        return cuts
    for path, module in model.named_modules():
        style = next((one for regex, one in styles.items() if regex.match(f"{path}.weight")), None)
        if style is None or style in _WHOLE or getattr(module, "weight", None) is None or module.weight.dim() != 2:
            continue
        if not isinstance(module, nn.Linear):
            raise CheckpointError(f"{path} of a {kind} is no nn.Linear, and its tp_plan cuts it: {_LIKE}")
        name = names[id(module.weight)]
        if name != f"{path}.weight":
            continue  # tied to the embedding: see below
        dim = 0 if style in _COLUMN else 1
        cuts[name] = _cut(module.weight, dim, tp_size, heads, path)
        if dim == 0 and module.bias is not None:
            cuts[names[id(module.bias)]] = _cut(module.bias, 0, tp_size, heads, path)
    _cut_tied_head(model, cuts, names, styles.values(), tp_size, heads)
    return cuts


_LIKE = "save it once with DeepSpeed, and give that folder as --like"


def _regex(pattern: str) -> str:
    regex = pattern.replace(".", r"\.").replace("*", ".*")
    return f".*{regex}" + ("$" if regex.endswith(r"\.weight") else r"\.weight$")


def _cut_tied_head(
    model: nn.Module,
    cuts: dict[str, TensorCut],
    names: Mapping[int, str],
    styles: Iterable[str],
    tp_size: int,
    heads: int | None,
) -> None:
    """Cut an embedding that the output head shares: DeepSpeed makes both vocab-parallel where the plan says so."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for path, module in model.named_modules():
        last = path.rpartition(".")[2]
        if isinstance(module, nn.Linear) and last in _HEADS and id(module.weight) in embeddings:
            if "embedding_rowwise" in styles:
                cuts[names[id(module.weight)]] = _cut(module.weight, 0, tp_size, heads, path)
            if module.bias is not None:
                raise CheckpointError(f"{path} is tied to the embedding and has a bias: {_LIKE}")


def _cut(tensor: Any, dim: int, tp_size: int, heads: int | None, path: str) -> TensorCut:
    length = int(tensor.shape[dim])
    by_heads = heads and not length % heads and "mlp" not in path and path not in _HEADS
    if by_heads and not any(part in path for part in _MLP):
        assert heads is not None
        size = length // heads
        parts = [shard(heads, tp_size, rank) for rank in range(tp_size)]
        pieces = [(offset * size, count * size) for offset, count in parts]
    else:
        pieces = [shard(length, tp_size, rank) for rank in range(tp_size)]
    return TensorCut(tuple(tensor.shape), dim, tuple((piece,) for piece in pieces))


def _key_value_heads(config: Any) -> int | None:
    config = getattr(config, "text_config", None) or config
    found = (getattr(config, name, None) for name in _KV_HEADS)
    return next((value for value in found if value is not None), None)
