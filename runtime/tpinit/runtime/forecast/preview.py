"""The preview of a run as plain data: plan, ranks, collectives and memory, without weights and without other ranks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn
from tpinit.reference.config import ConfigReading
from tpinit.reference.errors import TpinitError
from tpinit.runtime.errors import LoadError, PlanError
from tpinit.runtime.forecast.cost import (
    Collective,
    count_collectives,
    memory_of,
    product,
    update_collectives,
    wire_bytes,
)
from tpinit.runtime.groups import topology
from tpinit.runtime.loading.open_model import build_without_weights
from tpinit.runtime.planning import Plan, make_plan
from tpinit.runtime.planning.analysis.layer_folding import LayerFolding, fold_layers
from tpinit.runtime.planning.analysis.train_trace import dry_run_inputs
from tpinit.runtime.settings import Settings, check_section, read_settings
from tpinit.spec.vocabulary import Decision, DType

__all__ = ["forecast", "read_model_config"]

_ITEM_BYTES = {DType.FP32: 4, DType.FP16: 2, DType.BF16: 2}
_SHOWN_GROUPS = 4  # at each end of the list of TP groups


def read_model_config(path: Path) -> Any:
    """Return the transformers config of a directory or a config file. Raises LoadError if there is none."""
    from transformers import AutoConfig

    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise LoadError(f"{path} is neither a transformers config nor a directory that has a config.json")
    try:
        return AutoConfig.from_pretrained(file, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(f"{file} is no config of a model that transformers has: {str(error)[:200]}") from error


def forecast(
    model_config: Any,
    decision: Decision,
    reading: ConfigReading,
    sequence: int | None = None,
    layers: int | None = None,
    sequence_parallel: bool = False,
) -> dict[str, Any]:
    """Return a preview of what `initialize` does with this model under a decision, as data for JSON.

    `sequence` is the number of tokens in a sample (default: the config's max_position_embeddings, at most 4096);
    `layers` replaces the config's number of layers; `sequence_parallel` is the argument of `initialize`. Raises what
    `initialize` raises for a model, a config or a section that it refuses.
    """
    if layers is not None:
        _set_layers(model_config, layers)
    tp_size = decision.tp_size.value or 1
    check_section(decision.carried)
    dp_size = max(1, decision.world_size // tp_size)
    settings = read_settings(reading.config, dp_size, decision.dtype.value, decision.world_size)
    model = build_without_weights(model_config).model
    item = _ITEM_BYTES[decision.dtype.value] if decision.dtype.value is not None else 4
    length = sequence or min(getattr(model_config, "max_position_embeddings", None) or 2048, 4096)
    micro = settings.batch.micro or 1
    folded, plan, step, folding = _make_plan(model, decision, tp_size, micro * length, item, sequence_parallel)
    sent = _ITEM_BYTES.get(settings.averaging.dtype or DType.FP32, 4)
    update = update_collectives(plan, dp_size, sent, settings.averaging.bucket, settings.zero_stage > 1)
    if settings.zero_stage and dp_size > 1:
        update.append(
            Collective("which parameters were updated", "update", "all_reduce", "dp", len(plan.parameters), 4)
        )
        elements = sum(product(record.local_shape(tp_size, plan.tp_rank)) for record in plan.parameters)
        update.append(Collective("updated parameters", "update", "broadcast", "dp", elements, 4))
    return {
        "model": {
            "class": type(model).__qualname__,
            "parameters": sum(product(record.shape) for record in plan.parameters),
            "dtype": decision.dtype.value.value if decision.dtype.value is not None else None,
            "source_of_plan": plan.source,
        },
        "ranks": _ranks(decision.world_size, tp_size),
        "batch": {"micro": micro, "sequence": length, "accumulation": settings.batch.accumulation},
        "parameters": _parameters(folded, folding, item),
        "collectives": _collectives(step, update, folding, tp_size, dp_size, settings.batch.accumulation),
        "memory": _memory(plan, item, settings, dp_size),
        "replicated": _replicated(plan, item),
        "notes": [*plan.notes, *(note.text for note in settings.notes if note.changes_training)],
    }


def _make_plan(
    model: nn.Module, decision: Decision, tp_size: int, tokens: int, item: int, sequence_parallel: bool
) -> tuple[Plan, Plan, list[Collective], LayerFolding]:
    """Return the folded plan, the plan of all layers, the collectives of the folded model, and the folding.

    The model is planned with a few layers of each group of equal layers. If the model reads the index of a layer, or an
    error is raised, it is planned again with all layers, and the folding is empty.
    """

    def plan_present_layers() -> tuple[Plan, list[Collective]]:
        plan = make_plan(model, tp_size, decision.carried, sequence_parallel=sequence_parallel)
        if tp_size == 1:
            return plan, []
        inputs = dry_run_inputs(model, None)
        if inputs is None:
            raise PlanError(f"a {type(model).__qualname__} has no transformers config that describes its inputs")
        return plan, _count_collectives(model, plan, inputs, tokens, item)

    with fold_layers(model) as folding:
        try:
            folded, step = plan_present_layers()
        except Exception:  # the folding caused it, or it is raised again for all layers
            folding.index_reads.append("an error")
    if folding.index_reads:
        folded, step = plan_present_layers()
        return folded, folded, step, LayerFolding()
    return folded, folding.unfold(folded, model), step, folding


def _count_collectives(
    model: nn.Module, plan: Plan, inputs: Mapping[str, Any], tokens: int, item: int
) -> list[Collective]:
    """Return the collectives of one step. Raises PlanError for whatever the model's own code raises on these inputs."""
    try:
        return count_collectives(model, plan, inputs, tokens, item)
    except TpinitError:
        raise
    except Exception as error:  # the model's code, or a library that it calls
        raise PlanError(
            f"the collectives of a {type(model).__qualname__} can't be counted on a small batch: "
            f"{type(error).__name__}: {str(error)[:300]}"
        ) from error


def _set_layers(model_config: Any, layers: int) -> None:
    if not hasattr(model_config, "num_hidden_layers"):
        raise PlanError(f"a {type(model_config).__qualname__} has no num_hidden_layers to set")
    model_config.num_hidden_layers = layers
    kinds = getattr(model_config, "layer_types", None)
    if kinds:
        model_config.layer_types = [kinds[index % len(kinds)] for index in range(layers)]


def _ranks(world: int, tp_size: int) -> dict[str, Any]:
    """Return the first and last TP groups, and the rule from which the others follow."""
    count = topology.dp_size(world, tp_size)
    first = list(range(min(count, _SHOWN_GROUPS)))
    last = [index for index in range(max(count - _SHOWN_GROUPS, 0), count) if index not in first]
    return {
        "world": world,
        "tp_size": tp_size,
        "dp_size": count,
        "tp_groups": [
            {"dp_rank": index, "ranks": list(topology.tp_group(index, tp_size))} for index in (*first, *last)
        ],
        "tp_groups_left_out": count - len(first) - len(last),
        "rule": f"rank = dp_rank x {tp_size} + tp_rank",
    }


def _parameters(plan: Plan, folding: LayerFolding, item: int) -> list[dict[str, Any]]:
    """Return one row for all parameters whose names differ in numbers alone and whose plans are equal."""
    size = plan.tp_size
    found: dict[Any, list[tuple[str, ...]]] = {}
    for record in plan.parameters:
        key = (tuple(re.sub(r"\d+", "*", name) for name in record.names), replace(record, names=()))
        found.setdefault(key, []).append(record.names)
    return [
        {
            "name": " = ".join(folding.pattern(tied) for tied in zip(*names, strict=True)),
            "count": sum(max(len(folding.full_names(name)) for name in tied) for tied in names),
            "shape": list(record.shape),
            "cut": record.cut.value,
            "dim": record.dim,
            "gradients": record.gradient_rule.value,
            "why": record.reason,
            "slices": [[list(piece) for piece in record.pieces_of(size, rank)] for rank in range(size)],
            "local_shapes": [list(record.local_shape(size, rank)) for rank in range(size)],
            "local_bytes": [product(record.local_shape(size, rank)) * item for rank in range(size)],
        }
        for (_, record), names in found.items()
    ]


def _collectives(
    step: Iterable[Collective], update: list[Collective], folding: LayerFolding, tp_size: int, dp_size: int, micro: int
) -> dict[str, Any]:
    """Return one row for all collectives of one size whose modules' names differ in numbers alone, and the sums."""
    found: dict[Any, list[Collective]] = {}
    for call in (*step, *update):
        size = call.phase == "update" or call.nbytes
        found.setdefault((re.sub(r"\d+", "*", call.module), call.phase, call.kind, call.group, size), []).append(call)
    rows = []
    for calls in found.values():
        first, counts = calls[0], [len(folding.full_names(call.module)) for call in calls]
        ranks = tp_size if first.group == "tp" else dp_size
        rows.append(
            {
                "module": folding.pattern([call.module for call in calls]),
                "calls": sum(counts),
                "phase": first.phase,
                "kind": first.kind,
                "group": first.group,
                "largest_bytes": max(call.nbytes for call in calls),
                "bytes": sum(count * call.nbytes for count, call in zip(counts, calls, strict=True)),
                "wire_bytes": round(sum(n * wire_bytes(call, ranks) for n, call in zip(counts, calls, strict=True))),
            }
        )
    return {
        "each": rows,
        "per_micro_batch": _sums([(row, 1) for row in rows if row["phase"] != "update"]),
        "per_step": _sums([(row, 1 if row["phase"] == "update" else micro) for row in rows]),
    }


def _sums(rows: Iterable[tuple[dict[str, Any], int]]) -> dict[str, int]:
    """Return the sums over (row, how many times it is issued)."""
    every = list(rows)
    return {key: sum(times * row[key] for row, times in every) for key in ("calls", "bytes", "wire_bytes")}


def _memory(plan: Plan, item: int, settings: Settings, dp_size: int) -> list[dict[str, Any]]:
    """Return the memory of each TP rank. With ZeRO data-parallel ranks share optimizer states, and gradients at 2."""
    states = _states(settings)
    found = []
    for rank in range(plan.tp_size):
        memory = memory_of(plan, rank, item, states)
        if settings.zero_stage:
            memory = replace(memory, optimizer=-(-memory.optimizer // dp_size))
        if settings.zero_stage > 1:
            memory = replace(memory, gradients=-(-memory.gradients // dp_size))
        found.append({"tp_rank": rank, **asdict(memory), "total": memory.total})
    return found


def _states(settings: Settings) -> int:
    """Return how many state elements the optimizer has for each parameter element; -1 without an optimizer."""
    if settings.optimizer is None:
        return -1
    params: Mapping[str, object] = settings.optimizer.params
    if settings.optimizer.kind == "sgd":
        return 1 if params.get("momentum") else 0
    if settings.optimizer.kind in ("lion", "adagrad"):
        return 1
    return 3 if params.get("amsgrad") else 2


def _replicated(plan: Plan, item: int) -> dict[str, Any]:
    """Return the number and bytes of the replicated parameters, and the bytes by reason."""
    replicated = [record for record in plan.parameters if record.dim is None]
    reasons: dict[str, int] = {}
    for record in replicated:
        reason = record.reason or ("norms, biases and other vectors" if len(record.shape) < 2 else "no rule cuts it")
        reasons[reason] = reasons.get(reason, 0) + product(record.shape) * item
    return {"parameters": len(replicated), "bytes": sum(reasons.values()), "reasons": reasons}
