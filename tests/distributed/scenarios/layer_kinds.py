"""One row of the table LayerKind -> region functions is changed, for the forecast or for the layers alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tpinit.runtime import initialize
from tpinit.runtime.forecast.cost import count_collectives
from tpinit.runtime.parallel import LAYER_REGIONS, LayerKind, LayerRegions, copy_to_tp_region
from tpinit.runtime.planning.analysis.example_inputs import example_inputs

from families import catalogue
from support.collectives import CollectiveCounter
from support.family_training import SGD, family_batch, family_loss
from support.own_checks import let_change


def changed_row(rank: int, name: str, kind: str, forecast: str = "", layers: str = "") -> dict[str, Any]:
    """Train one step; return the collectives that were forecast and those that were issued, as (kind, elements).

    `forecast` and `layers` say how the row of `kind` is changed while the forecast reads it, or the layers do:
    "emptied", or "copied" (a copy to the TP region is added where the row has none).
    """
    model, whole = catalogue.build(name), catalogue.build(name)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,  # so that the first backward holds no collective of the update
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": 2},
    }
    with _changed(LayerKind(kind), layers):
        # A probe would refuse the layers that are changed here.
        engine = initialize(model=model, config=config, verify="rehearsal")[0]
    let_change(engine)
    batch = family_batch(name, whole, 0, 2, False)
    ids = example_inputs(whole, torch.device("cpu"))[0]
    with _changed(LayerKind(kind), forecast):
        expected = count_collectives(whole, engine.plan, ids, batch["input_ids"].numel(), 4)
    with torch.no_grad():
        engine(**batch)  # the first call compares the inputs of the ranks
    counter = CollectiveCounter()
    with counter.on():
        engine.backward(family_loss(name, engine, batch, False))
    return {
        "has_kind": any(layer.kind.value == kind for layer in engine.plan.layers),
        "forecast": sorted((one.kind, one.elements) for one in expected),
        "issued": sorted((call, elements) for call, _, elements in counter.calls),
    }


@contextmanager
def _changed(kind: LayerKind, how: str) -> Iterator[None]:
    row = LAYER_REGIONS[kind]
    if how == "emptied":
        LAYER_REGIONS[kind] = LayerRegions()
    elif how == "copied":
        LAYER_REGIONS[kind] = LayerRegions(row.input or copy_to_tp_region, row.output or copy_to_tp_region)
    else:
        assert not how, how
    try:
        yield
    finally:
        LAYER_REGIONS[kind] = row
