"""Layers and forecast read one table, and the comparison of their counts sees a row that differs between the two."""

from __future__ import annotations

from typing import Any

import pytest
from tpinit.runtime.parallel import LAYER_REGIONS, LayerKind

pytestmark = pytest.mark.distributed

# A family that has a layer of the kind.
FAMILIES = {
    LayerKind.COLUMN: "llama",
    LayerKind.ROW: "llama",
    LayerKind.EMBEDDING: "llama",
    LayerKind.HEAD: "llama",
    LayerKind.EXPERTS: "mixtral",
    LayerKind.COLUMN_GATHER: "olmo2",
    LayerKind.ROW_SPLIT: "olmo2",
    LayerKind.SHARED_OUTPUT: "deepseek_v2",
}


def counts(world: Any, kind: LayerKind, **changed: str) -> list[tuple[Any, Any]]:
    results = world.run("scenarios.layer_kinds:changed_row", name=FAMILIES[kind], kind=kind.value, **changed)
    assert all(result["has_kind"] for result in results)
    return [(result["forecast"], result["issued"]) for result in results]


def test_every_kind_has_a_row() -> None:
    assert set(LAYER_REGIONS) == set(LayerKind) == set(FAMILIES)


@pytest.mark.parametrize("kind", [LayerKind.COLUMN_GATHER, LayerKind.SHARED_OUTPUT])
def test_the_forecast_is_what_is_issued(world2: Any, kind: LayerKind) -> None:
    assert all(forecast == issued for forecast, issued in counts(world2, kind))


@pytest.mark.parametrize("kind", LayerKind)
def test_a_forecast_from_an_empty_row_differs_from_what_is_issued(world2: Any, kind: LayerKind) -> None:
    for forecast, issued in counts(world2, kind, forecast="emptied"):
        assert len(forecast) < len(issued)


@pytest.mark.parametrize("kind", [LayerKind.COLUMN, LayerKind.ROW])
def test_layers_with_a_changed_row_issue_more_than_the_forecast(world2: Any, kind: LayerKind) -> None:
    for forecast, issued in counts(world2, kind, layers="copied"):
        assert len(issued) > len(forecast)


@pytest.mark.parametrize("kind", [LayerKind.COLUMN, LayerKind.ROW])
def test_forecast_and_layers_that_read_the_same_changed_row_agree(world2: Any, kind: LayerKind) -> None:
    for forecast, issued in counts(world2, kind, forecast="copied", layers="copied"):
        assert len(forecast) == len(issued)
