"""Public calls on a sharded model are right, or refused by name (docs/calls.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tpinit.runtime.training.call_guards import REFUSED

pytestmark = pytest.mark.distributed


def test_saved_and_loaded_state_is_that_of_the_whole_model(world2: Any, tmp_path: Path) -> None:
    for result in world2.run("scenarios.calls:whole_files_and_state_dicts", folder=str(tmp_path)):
        assert max(result["gaps"].values()) < 1e-5, result["gaps"]
        assert result["alone"].startswith("AgreementError")
        assert result["in_step"]


def test_calls_that_would_give_parts_are_refused_and_harmless_ones_pass(world2: Any) -> None:
    for result in world2.run("scenarios.calls:refused_calls"):
        assert all(text.startswith("EngineError") for text in result["texts"].values()), result["texts"]
        assert {"resize_token_embeddings", "push_to_hub", "to_empty"} <= set(result["texts"])
        assert result["same"]
        assert result["gap"] < 1e-5
        assert result["in_step"]


def test_saved_adapters_are_whole(world2: Any, tmp_path: Path) -> None:
    for result in world2.run("scenarios.calls:adapters", folder=str(tmp_path)):
        assert result["saved"] < 1e-5
        assert result["gap"] < 1e-5
        assert result["merge"].startswith("EngineError")
        assert result["in_step"]


def test_the_table_names_every_refused_call() -> None:
    table = (Path(__file__).parents[2] / "docs" / "calls.md").read_text()
    assert [name for name in REFUSED if f"`{name}`" not in table] == []
