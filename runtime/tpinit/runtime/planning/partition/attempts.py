"""Every way to cut a region that fits its sizes, the likeliest first, with the patch that its block may need."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import nn
from tpinit.runtime.planning.analysis.example_inputs import BATCH
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.partition.regions import BlockPatch, Region
from tpinit.runtime.planning.partition.shard_maps import (
    HeadSharding,
    RegionSharding,
    feature_shardings,
    head_shardings,
    respects_blocks,
)
from tpinit.runtime.planning.requests.request import LayerRequest
from tpinit.runtime.shards import shard_length

__all__ = ["block_sizes_note", "cut_attempts", "head_arguments", "no_sharding_reason"]

_MANY = 5  # how many doubtful numbers of a block are tried in all combinations


def cut_attempts(
    model: nn.Module,
    region: Region,
    matrices: Mapping[str, LinearInfo],
    tp_size: int,
    fused: Mapping[str, LayerRequest],
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[RegionSharding, BlockPatch]]:
    """Yield every way to cut a region that fits its sizes, with what its block may have to be told, likely ones first.

    `shapes` are those of the tensors that the block is called with.
    """
    block = model.get_submodule(region.block)
    width = matrices[region.rows[0]].in_features
    for heads, layout in _layouts(block, region, matrices, tp_size, fused):
        for adaptation in _adaptations(block, width, heads, shapes, tp_size):
            yield layout, adaptation


def no_sharding_reason(region: Region, matrices: Mapping[str, LinearInfo], tp_size: int) -> str:
    """Return why no sharding of a region fits its sizes, for an error."""
    kind = "attention heads" if region.is_attention else "features"
    width = matrices[region.rows[0]].in_features
    sizes = ", ".join(f"{name.rpartition('.')[2]} {matrices[name].out_features}" for name in region.columns)
    return f"no way to cut its {kind} over {tp_size} ranks fits its sizes ({sizes}; the row's input {width})"


def block_sizes_note(fused: Mapping[str, LayerRequest]) -> str:
    """Return which fused block sizes were requested, for an error; empty if none were."""
    said = [f"{name.rpartition('.')[2]} {list(one.blocks)}" for name, one in fused.items() if one.blocks]
    return f", with the parts that were said to be fused in {', '.join(said)}" if said else ""


def _layouts(
    block: nn.Module,
    region: Region,
    matrices: Mapping[str, LinearInfo],
    tp_size: int,
    fused: Mapping[str, LayerRequest],
) -> Iterator[tuple[HeadSharding | None, RegionSharding]]:
    columns = {name: matrices[name].out_features for name in region.columns}
    width = matrices[region.rows[0]].in_features
    blocks = {name: one.blocks for name, one in fused.items() if one.blocks}
    rows = {blocks[name] for name in region.rows if name in blocks}
    if len(rows) > 1:
        return
    (row,) = rows or {()}
    if not region.is_attention:
        found: Iterator[tuple[HeadSharding | None, RegionSharding]] = (
            (None, one) for one in feature_shardings(columns, width, tp_size, blocks, row)
        )
    else:
        found = iter(head_shardings(columns, width, _head_numbers(block), tp_size, blocks))
    for heads, layout in found:
        spreads = {**layout.columns, **dict.fromkeys(region.rows, layout.row)}
        if all(respects_blocks(spreads[name], one.blocks, one.unit) for name, one in fused.items() if one.blocks):
            yield heads, layout


# --- numbers of a block ----------------------------------------------------------------------------------


def _numbers(owner: Any) -> dict[str, int]:
    values = owner if isinstance(owner, dict) else vars(owner)
    return {
        name: value
        for name, value in values.items()
        if type(value) is int and value > 0 and not name.startswith("_") and name not in _NEVER
    }


# Numbers of a module or a config that say nothing about the features of a layer.
_NEVER = {"training", "layer_idx", "layer_id", "pad_token_id", "bos_token_id", "eos_token_id", "vocab_size"}


def _head_numbers(block: nn.Module) -> list[int]:
    """Return the numbers that may count heads, the likely ones first: those whose names say so."""
    found: list[tuple[int, int]] = []
    for _, owner, _ in _owners(block):
        for name, value in _numbers(owner).items():
            counts = "head" in name and not re.search(r"dim|size|width", name)
            unlikely = 2 - counts + (counts and bool(re.search(r"kv|key|value|group", name)))
            found.append((unlikely if counts else 3, value))
    return list(dict.fromkeys(value for _, value in sorted(found, key=lambda one: one[0])))


def _owners(block: nn.Module) -> Iterator[tuple[str, Any, frozenset[str] | None]]:
    """Yield what has numbers: the block and the modules inside, each with its config (and what of that is read)."""
    for name, module in block.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, (nn.Linear, nn.Embedding)) or type(module).__qualname__ == "Conv1D":
            continue
        yield prefix, module, None
        config = getattr(module, "config", None)
        if config is not None and not isinstance(config, nn.Module):
            yield f"{prefix}config.", config, _config_names(type(module).forward)


@lru_cache(maxsize=256)
def _config_names(forward: Any) -> frozenset[str]:
    """Return the entries of its config that a block's own forward reads."""
    try:
        text = inspect.getsource(forward)
    except (OSError, TypeError):
        return frozenset()
    return frozenset(re.findall(r"self\.config\.(\w+)", text))


def _adaptations(
    block: nn.Module,
    width: int,
    heads: HeadSharding | None,
    shapes: Mapping[str, tuple[int, ...]],
    tp_size: int,
) -> Iterator[BlockPatch]:
    """Yield what a block may have to be told, nothing first, then everything that has a number of the whole."""
    numbers = _whole_numbers(block, width, heads, tp_size)
    arguments: list[tuple[str, int]] = []
    base = BlockPatch()
    if heads is not None:
        arguments = head_arguments(shapes, heads.num_heads)
        base = BlockPatch(
            head_outputs=tuple(
                name
                for name, one in block.named_modules()
                if isinstance(one, nn.Embedding) and one.embedding_dim == heads.num_heads
            ),
            head_parameters=tuple(
                name
                for name, one in block.named_parameters()
                if one.dim()
                and one.shape[0] in (heads.num_heads, heads.num_kv_heads if "." in name else heads.num_heads)
                and ("." not in name or _per_head(block.get_submodule(name.rpartition(".")[0]), one))
            ),
        )
    for chosen in _subsets(numbers):
        for taken in _subsets(arguments):
            yield replace(base, attributes=tuple(chosen), head_arguments=tuple(taken))


def _per_head(module: nn.Module, parameter: nn.Parameter) -> bool:
    """Tell whether a parameter inside a block may have a row for each head: a norm's, with one of each feature too."""
    return parameter.dim() == 2 and not isinstance(module, (nn.Linear, nn.Embedding)) and "norm" in _kind(module)


def _kind(module: nn.Module) -> str:
    return type(module).__qualname__.lower()


def _subsets(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield none, all, and then all other choices, the larger ones first; of many, not all choices."""
    yield ()
    if items:
        yield tuple(items)
    if 1 < len(items) <= _MANY:
        for size in range(len(items) - 1, 0, -1):
            yield from itertools.combinations(items, size)


def _whole_numbers(
    block: nn.Module, width: int, heads: HeadSharding | None, tp_size: int
) -> list[tuple[str, tuple[int, ...]]]:
    """Return the numbers of a block that may count what it has of the whole, with each rank's."""
    locals_of: dict[int, tuple[int, ...]] = {}
    if heads is not None:
        ranks = [heads.local(rank) for rank in range(tp_size)]
        size, group = width // heads.num_heads, heads.num_heads // heads.num_kv_heads
        # A later entry does not replace an earlier one: a number of heads is likelier than a size.
        for value, local in (
            (heads.num_heads, tuple(count for count, _ in ranks)),
            (heads.num_kv_heads, tuple(kv for _, kv in ranks)),
            (width, tuple(count * size for count, _ in ranks)),
            (heads.num_kv_heads * size, tuple(kv * size for _, kv in ranks)),
            (width + 2 * heads.num_kv_heads * size, tuple((count + 2 * kv) * size for count, kv in ranks)),
        ):
            locals_of.setdefault(value, local)
        groups = tuple(count // kv for count, kv in ranks)
        if groups != (group,) * tp_size:
            locals_of.setdefault(group, groups)
        locals_of.pop(size, None) if size not in (heads.num_heads, heads.num_kv_heads) else None
        locals_of = {value: local for value, local in locals_of.items() if local != (value,) * tp_size}
    else:
        locals_of[width] = tuple(shard_length(width, tp_size, rank) for rank in range(tp_size))
        locals_of[2 * width] = tuple(2 * one for one in locals_of[width])
    found = []
    for prefix, owner, read in _owners(block):
        for name, value in _numbers(owner).items():
            sized = re.search(r"head_dim|head_size|per_head|hidden_per", name)
            if value in locals_of and not sized and (read is None or name in read):
                found.append((f"{prefix}{name}", locals_of[value]))
    return found


# --- arguments that come in whole ---


def head_arguments(shapes: Mapping[str, tuple[int, ...]], count: int) -> list[tuple[str, int]]:
    """Return the arguments, by name or position, whose shape has a dimension that counts heads; at most three."""
    return [
        (name, dim)
        for name, shape in shapes.items()
        for dim, size in enumerate(shape[:-1])
        if size in (count, BATCH * count)
    ][:3]
