"""The attempts to shard a region: every sharding that fits its sizes, with every patch that its block may need."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import nn
from tpinit.runtime.internals.transformers_private import is_conv1d
from tpinit.runtime.planning.analysis.example_inputs import BATCH
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.partition.regions import BlockPatch, FeatureParameter, Region
from tpinit.runtime.planning.partition.shard_maps import (
    HeadSharding,
    RegionSharding,
    feature_shardings,
    head_shardings,
    respects_fused_sizes,
)
from tpinit.runtime.planning.requests.request import LayerRequest
from tpinit.runtime.shards import shard_length

__all__ = ["counts_a_group", "fused_sizes_note", "cut_attempts", "head_arguments", "no_sharding_reason"]

_MAX_COMBINED = 5  # the most uncertain changes of a patch that are tried in all combinations


def cut_attempts(
    model: nn.Module,
    region: Region,
    linears: Mapping[str, LinearInfo],
    tp_size: int,
    requested: Mapping[str, LayerRequest],
    shapes: Mapping[str, tuple[int, ...]],
    features: Sequence[FeatureParameter] = (),
) -> Iterator[tuple[RegionSharding, BlockPatch]]:
    """Yield every sharding of a region that fits its sizes, with every patch of its block, the likeliest first.

    `requested` are the requests for the region's layers, by name: only shardings that respect their fused parts are
    yielded. `shapes` are those of the tensors that the block is called with, by name or position. `features` are
    parameters that may have one element for each feature.
    """
    block = model.get_submodule(region.block)
    width = linears[region.rows[0]].in_features
    for heads, sharding in _shardings(block, region, linears, tp_size, requested):
        for patch in _patches(block, width, heads, shapes, tp_size):
            with_features = tuple(one for one in features if one.path not in patch.head_parameters)
            if with_features:
                yield sharding, replace(patch, feature_parameters=with_features)
            yield sharding, patch


def no_sharding_reason(region: Region, linears: Mapping[str, LinearInfo], tp_size: int) -> str:
    """Return why no sharding of a region fits its sizes, for an error."""
    kind = "attention heads" if region.is_attention else "features"
    width = linears[region.rows[0]].in_features
    sizes = ", ".join(f"{name.rpartition('.')[2]} {linears[name].out_features}" for name in region.columns)
    sizes = f"{sizes}; the row's input {width}"
    return f"its {kind} can't be sharded over {tp_size} ranks: no sharding fits its sizes ({sizes})"


def fused_sizes_note(requested: Mapping[str, LayerRequest]) -> str:
    """Return which fused parts were requested, for an error; empty if none were."""
    parts = [
        f"{name.rpartition('.')[2]} {list(layer.fused_sizes)}" for name, layer in requested.items() if layer.fused_sizes
    ]
    return f", with the fused parts that were requested for {', '.join(parts)}" if parts else ""


def _shardings(
    block: nn.Module,
    region: Region,
    linears: Mapping[str, LinearInfo],
    tp_size: int,
    requested: Mapping[str, LayerRequest],
) -> Iterator[tuple[HeadSharding | None, RegionSharding]]:
    """Yield every sharding of a region that fits its sizes and the requested fused parts, after that of its heads."""
    columns = {name: linears[name].out_features for name in region.columns}
    width = linears[region.rows[0]].in_features
    fused_sizes = {name: layer.fused_sizes for name, layer in requested.items() if layer.fused_sizes}
    row_requests = {fused_sizes[name] for name in region.rows if name in fused_sizes}
    if len(row_requests) > 1:
        return
    (row_fused_sizes,) = row_requests or {()}
    shardings: Iterator[tuple[HeadSharding | None, RegionSharding]]
    if region.is_attention:
        shardings = iter(head_shardings(columns, width, _head_counts(block), tp_size, fused_sizes))
    else:
        by_feature = feature_shardings(columns, width, tp_size, fused_sizes, row_fused_sizes)
        shardings = ((None, sharding) for sharding in by_feature)
    for heads, sharding in shardings:
        shard_maps = {**sharding.columns, **dict.fromkeys(region.rows, sharding.row)}
        if all(
            respects_fused_sizes(shard_maps[name], layer.fused_sizes, layer.unit)
            for name, layer in requested.items()
            if layer.fused_sizes
        ):
            yield heads, sharding


# --- integer attributes of a block ---------------------------------------------------------------------------


def _int_attributes(owner: Any) -> dict[str, int]:
    """Return the positive integer attributes of a module or a config that may count heads or features."""
    values = owner if isinstance(owner, dict) else vars(owner)
    return {
        name: value
        for name, value in values.items()
        if type(value) is int and value > 0 and not name.startswith("_") and name not in _NEVER_SIZES
    }


_Attribute = tuple[str, tuple[int, ...]]  # path, value of each rank
_IS_GROUP = re.compile(r"(^|\.)(num_key_value_groups|num_kv_groups|n_kv_groups|num_queries_per_kv|n_rep)$")
_NEVER_SIZES = {"training", "layer_idx", "layer_id", "pad_token_id", "bos_token_id", "eos_token_id", "vocab_size"}


def _head_counts(block: nn.Module) -> list[int]:
    """Return the integers that may count heads, the likeliest first: an attribute's name shows how likely it is."""
    ranked: list[tuple[int, int]] = []
    for _, owner, _ in _attribute_owners(block):
        for name, value in _int_attributes(owner).items():
            is_count = "head" in name and not re.search(r"dim|size|width", name)
            is_kv_count = is_count and bool(re.search(r"kv|key|value|group", name))
            rank = 1 + is_kv_count if is_count else 3
            ranked.append((rank, value))
    return list(dict.fromkeys(value for _, value in sorted(ranked, key=lambda pair: pair[0])))


def _attribute_owners(block: nn.Module) -> Iterator[tuple[str, Any, frozenset[str] | None]]:
    """Yield the modules of a block and their configs: path prefix, object, and the names that are read of a config."""
    for name, module in block.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, (nn.Linear, nn.Embedding)) or is_conv1d(module):
            continue
        yield prefix, module, None
        config = getattr(module, "config", None)
        if config is not None and not isinstance(config, nn.Module):
            yield f"{prefix}config.", config, _config_names(type(module).forward)


@lru_cache(maxsize=256)
def _config_names(forward: Any) -> frozenset[str]:
    """Return the names of the config entries that a forward reads, from its source."""
    try:
        text = inspect.getsource(forward)
    except (OSError, TypeError):
        return frozenset()
    return frozenset(re.findall(r"self\.config\.(\w+)", text))


# --- patches of a block --------------------------------------------------------------------------------------


def _patches(
    block: nn.Module,
    width: int,
    heads: HeadSharding | None,
    shapes: Mapping[str, tuple[int, ...]],
    tp_size: int,
) -> Iterator[BlockPatch]:
    """Yield the patches that a block may need: the smallest first, then the largest, then those in between."""
    attributes = _patched_attributes(block, width, heads, tp_size)
    arguments: list[tuple[str, int]] = []
    base = BlockPatch()
    if heads is not None:
        arguments = head_arguments(shapes, heads.num_heads)
        base = BlockPatch(
            head_outputs=tuple(
                name
                for name, module in block.named_modules()
                if isinstance(module, nn.Embedding) and module.embedding_dim == heads.num_heads
            ),
            head_parameters=tuple(
                name
                for name, parameter in block.named_parameters()
                if parameter.dim()
                and parameter.shape[0] in (heads.num_heads, heads.num_kv_heads if "." in name else heads.num_heads)
                and ("." not in name or _is_per_head_norm(block.get_submodule(name.rpartition(".")[0]), parameter))
            ),
        )
    for chosen_attributes in _attribute_choices(attributes):
        for chosen_arguments in _subsets(arguments):
            yield replace(base, attributes=chosen_attributes, head_arguments=tuple(chosen_arguments))


def _attribute_choices(attributes: Sequence[_Attribute]) -> Iterator[tuple[_Attribute, ...]]:
    """Yield the attributes to patch: first the choices that have every group of query heads."""
    groups = [one for one in attributes if counts_a_group(one[0])]
    for chosen in _subsets([one for one in attributes if one not in groups]):
        yield tuple(one for one in attributes if one in groups or one in chosen)
    if groups:
        yield from (tuple(chosen) for chosen in _subsets(attributes) if any(one not in chosen for one in groups))


def _is_per_head_norm(module: nn.Module, parameter: nn.Parameter) -> bool:
    """Return whether a parameter of a submodule may have a row for each head: the weight [heads, features] of a norm.

    A weight [features] of a norm is shared by all heads, even if its length is the number of heads.
    """
    is_norm = "norm" in type(module).__qualname__.lower()
    return parameter.dim() == 2 and not isinstance(module, (nn.Linear, nn.Embedding)) and is_norm


def _subsets(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield the empty subset, then all items, then, if there are few, every subset in between, larger ones first."""
    yield ()
    if items:
        yield tuple(items)
    if 1 < len(items) <= _MAX_COMBINED:
        for size in range(len(items) - 1, 0, -1):
            yield from itertools.combinations(items, size)


def _patched_attributes(
    block: nn.Module, width: int, heads: HeadSharding | None, tp_size: int
) -> list[tuple[str, tuple[int, ...]]]:
    """Return the integer attributes of a block that may count sharded heads or features, with each rank's value."""
    if heads is not None:
        local_values = _local_head_values(width, heads, tp_size)
    else:
        lengths = tuple(shard_length(width, tp_size, rank) for rank in range(tp_size))
        local_values = {width: lengths, 2 * width: tuple(2 * length for length in lengths)}
    patched = []
    groups = _local_groups(heads, tp_size) if heads is not None else None
    for prefix, owner, read_names in _attribute_owners(block):
        for name, value in _int_attributes(owner).items():
            if heads is not None and counts_a_group(name) and value == heads.num_heads // heads.num_kv_heads:
                if groups is not None and (read_names is None or name in read_names):
                    patched.append((f"{prefix}{name}", groups))
                continue
            is_head_size = re.search(r"head_dim|head_size|per_head|hidden_per", name)
            if value in local_values and not is_head_size and (read_names is None or name in read_names):
                patched.append((f"{prefix}{name}", local_values[value]))
    return patched


def _local_head_values(width: int, heads: HeadSharding, tp_size: int) -> dict[int, tuple[int, ...]]:
    """Return the integers that may count heads or features of a whole attention block, with each rank's value.

    Two quantities may have the same value; then the one listed first counts.
    """
    local_values: dict[int, tuple[int, ...]] = {}
    ranks = [heads.local(rank) for rank in range(tp_size)]
    head_size, group = width // heads.num_heads, heads.num_heads // heads.num_kv_heads
    for value, local in (
        (heads.num_heads, tuple(count for count, _ in ranks)),
        (heads.num_kv_heads, tuple(kv for _, kv in ranks)),
        (width, tuple(count * head_size for count, _ in ranks)),
        (heads.num_kv_heads * head_size, tuple(kv * head_size for _, kv in ranks)),
        (width + 2 * heads.num_kv_heads * head_size, tuple((count + 2 * kv) * head_size for count, kv in ranks)),
    ):
        local_values.setdefault(value, local)
    if (local_groups := _local_groups(heads, tp_size)) is not None:
        local_values.setdefault(group, local_groups)
    if head_size not in (heads.num_heads, heads.num_kv_heads):
        local_values.pop(head_size, None)
    return {value: local for value, local in local_values.items() if local != (value,) * tp_size}


def counts_a_group(path: str) -> bool:
    """Return whether an attribute counts the query heads to a key/value head, by its name.

    It is patched although a dry run passes without it: transformers' sdpa reads it only where there is an attention
    mask, and the dry run has none.
    """
    return _IS_GROUP.search(path) is not None


def _local_groups(heads: HeadSharding, tp_size: int) -> tuple[int, ...] | None:
    """Return the number of query heads to a key/value head on each rank; None if it is that of the whole block."""
    local = tuple(count // kv for count, kv in (heads.local(rank) for rank in range(tp_size)))
    return local if local != (heads.num_heads // heads.num_kv_heads,) * tp_size else None


def head_arguments(shapes: Mapping[str, tuple[int, ...]], num_heads: int) -> list[tuple[str, int]]:
    """Return the arguments, at most three, that have a dimension of heads, or of batch times heads, and the dimension.

    `shapes` are those of a block's tensor arguments by name or position; the last dimension counts features.
    """
    return [
        (name, dim)
        for name, shape in shapes.items()
        for dim, size in enumerate(shape[:-1])
        if size in (num_heads, BATCH * num_heads)
    ][:3]
