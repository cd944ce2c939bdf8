"""What a run will be, before it is paid for: plan, ranks, collectives and memory, as plain data."""

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

_SIZES = {DType.FP32: 4, DType.FP16: 2, DType.BF16: 2}
_SHOWN = 4  # groups at each end of a list of them


def read_model_config(place: Path) -> Any:
    """Return the transformers config of a directory or a file. Raises LoadError where there is none."""
    from transformers import AutoConfig

    file = place / "config.json" if place.is_dir() else place
    if not file.is_file():
        raise LoadError(f"{place} is neither a transformers config nor a directory that has a config.json")
    try:
        return AutoConfig.from_pretrained(file, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(f"{file} is no config of a model that transformers knows: {str(error)[:200]}") from error


def forecast(
    model_config: Any,
    decision: Decision,
    reading: ConfigReading,
    sequence: int | None = None,
    layers: int | None = None,
    sequence_parallel: bool = False,
) -> dict[str, Any]:
    """Return what `initialize` would make of this model under a decision, as data for JSON.

    `sequence` is the number of tokens in a sample (default: what the config says the model has positions for, at
    most 4096), `layers` a number of layers in place of the config's, `sequence_parallel` what `initialize` takes.
    Raises what `initialize` raises for a model, a config or a section that it refuses.
    """
    if layers is not None:
        _set_layers(model_config, layers)
    tp_size = decision.tp_size.value or 1
    check_section(decision.carried)
    dp_size = max(1, decision.world_size // tp_size)
    settings = read_settings(reading.config, dp_size, decision.dtype.value)
    model = build_without_weights(model_config).model
    item = _SIZES[decision.dtype.value] if decision.dtype.value is not None else 4
    length = sequence or min(getattr(model_config, "max_position_embeddings", None) or 2048, 4096)
    micro = settings.batch.micro or 1
    short, plan, step, folding = _planned(model, decision, tp_size, micro * length, item, sequence_parallel)
    update = update_collectives(plan, dp_size, 4)
    return {
        "model": {
            "class": type(model).__qualname__,
            "parameters": sum(product(one.shape) for one in plan.parameters),
            "dtype": decision.dtype.value.value if decision.dtype.value is not None else None,
            "source_of_plan": plan.source,
        },
        "ranks": _ranks(decision.world_size, tp_size),
        "batch": {"micro": micro, "sequence": length, "accumulation": settings.batch.accumulation},
        "parameters": _parameters(short, folding, item),
        "collectives": _collectives(step, update, folding, tp_size, dp_size, settings.batch.accumulation),
        "memory": _memory(plan, item, settings),
        "replicated": _replicated(plan, item),
        "notes": list(plan.notes),
    }


def _planned(
    model: nn.Module, decision: Decision, tp_size: int, tokens: int, item: int, sequence_parallel: bool
) -> tuple[Plan, Plan, list[Collective], LayerFolding]:
    """Return the plan of a few layers of each kind, that of all, the collectives of the few, and what they stand for.

    Where a few can't speak for all, or anything is wrong, each layer stands for itself.
    """

    def of_what_is_there() -> tuple[Plan, list[Collective]]:
        plan = make_plan(model, tp_size, decision.carried, sequence_parallel=sequence_parallel)
        if tp_size == 1:
            return plan, []
        inputs = dry_run_inputs(model, None)
        if inputs is None:
            raise PlanError(f"a {type(model).__qualname__} has no transformers config that describes its inputs")
        return plan, _count_collectives(model, plan, inputs, tokens, item)

    with fold_layers(model) as folding:
        try:
            short, step = of_what_is_there()
        except Exception:  # whatever it is, it comes again with the whole model, or was the folding's
            folding.index_reads.append("an error")
    if folding.index_reads:
        short, step = of_what_is_there()
        return short, short, step, LayerFolding()
    return short, folding.unfold(short, model), step, folding


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
        model_config.layer_types = [kinds[place % len(kinds)] for place in range(layers)]


def _ranks(world: int, tp_size: int) -> dict[str, Any]:
    """Return how ranks lie: the first and last TP groups, and where the others follow."""
    count = topology.dp_size(world, tp_size)
    first = list(range(min(count, _SHOWN)))
    last = [index for index in range(max(count - _SHOWN, 0), count) if index not in first]
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
    """Return one record for all parameters that are cut alike in layers of one kind."""
    size = plan.tp_size
    found: dict[Any, list[tuple[str, ...]]] = {}
    for one in plan.parameters:
        key = (tuple(re.sub(r"\d+", "*", name) for name in one.names), replace(one, names=()))
        found.setdefault(key, []).append(one.names)
    return [
        {
            "name": " = ".join(folding.pattern(same) for same in zip(*names, strict=True)),
            "count": sum(max(len(folding.full_names(name)) for name in every) for every in names),
            "shape": list(one.shape),
            "cut": one.cut.value,
            "dim": one.dim,
            "gradients": one.gradient_rule.value,
            "why": one.reason,
            "slices": [[list(piece) for piece in one.pieces_of(size, rank)] for rank in range(size)],
            "local_shapes": [list(one.local_shape(size, rank)) for rank in range(size)],
            "local_bytes": [product(one.local_shape(size, rank)) * item for rank in range(size)],
        }
        for (_, one), names in found.items()
    ]


def _collectives(
    step: Iterable[Collective], update: list[Collective], folding: LayerFolding, tp_size: int, dp_size: int, micro: int
) -> dict[str, Any]:
    """Return one record for all collectives of one kind in layers of one kind, and the sums."""
    found: dict[Any, list[Collective]] = {}
    for one in (*step, *update):
        key = (re.sub(r"\d+", "*", one.module), one.phase, one.kind, one.group, one.phase == "update" or one.nbytes)
        found.setdefault(key, []).append(one)
    rows = []
    for alike in found.values():
        first, counts = alike[0], [len(folding.full_names(one.module)) for one in alike]
        ranks = tp_size if first.group == "tp" else dp_size
        rows.append(
            {
                "module": folding.pattern([one.module for one in alike]),
                "calls": sum(counts),
                "phase": first.phase,
                "kind": first.kind,
                "group": first.group,
                "largest_bytes": max(one.nbytes for one in alike),
                "bytes": sum(count * one.nbytes for count, one in zip(counts, alike, strict=True)),
                "wire_bytes": round(sum(n * wire_bytes(one, ranks) for n, one in zip(counts, alike, strict=True))),
            }
        )
    return {
        "each": rows,
        "per_micro_batch": _sums([(row, 1) for row in rows if row["phase"] != "update"]),
        "per_step": _sums([(row, 1 if row["phase"] == "update" else micro) for row in rows]),
    }


def _sums(rows: Iterable[tuple[dict[str, Any], int]]) -> dict[str, int]:
    every = list(rows)
    return {key: sum(times * row[key] for row, times in every) for key in ("calls", "bytes", "wire_bytes")}


def _memory(plan: Plan, item: int, settings: Settings) -> list[dict[str, Any]]:
    states = _states(settings)
    found = []
    for rank in range(plan.tp_size):
        one = memory_of(plan, rank, item, states)
        found.append({"tp_rank": rank, **asdict(one), "total": one.total})
    return found


def _states(settings: Settings) -> int:
    """Return how many numbers of state the optimizer has for each of a parameter; -1 without an optimizer."""
    if settings.optimizer is None:
        return -1
    params: Mapping[str, object] = settings.optimizer.params
    if settings.optimizer.kind == "sgd":
        return 1 if params.get("momentum") else 0
    return 3 if params.get("amsgrad") else 2


def _replicated(plan: Plan, item: int) -> dict[str, Any]:
    whole = [one for one in plan.parameters if one.dim is None]
    reasons: dict[str, int] = {}
    for one in whole:
        reason = one.reason or ("norms, biases and other vectors" if len(one.shape) < 2 else "no rule cuts it")
        reasons[reason] = reasons.get(reason, 0) + product(one.shape) * item
    return {"parameters": len(whole), "bytes": sum(reasons.values()), "reasons": reasons}
