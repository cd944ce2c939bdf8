"""A layer that takes or returns a part runs inside a module whose output is whole, and is refused by itself."""

from __future__ import annotations

from typing import Any

import pytest
from tpinit.runtime.parallel import LayerKind
from tpinit.runtime.training.lone_layers import LONE_CALLS

pytestmark = pytest.mark.distributed

FAMILIES = {
    "mixtral": (LayerKind.COLUMN, LayerKind.ROW, LayerKind.EMBEDDING, LayerKind.HEAD, LayerKind.EXPERTS),
    "olmo2": (LayerKind.COLUMN_GATHER, LayerKind.ROW_SPLIT),
    "deepseek_v2": (LayerKind.SHARED_OUTPUT,),
}


def test_every_kind_has_an_answer_and_a_family() -> None:
    assert set(LONE_CALLS) == set(LayerKind) == {kind for kinds in FAMILIES.values() for kind in kinds}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_kind_by_itself_is_right_or_refused(world2: Any, family: str) -> None:
    for result in world2.run("scenarios.lone_layers:kinds", family=family):
        for kind in FAMILIES[family]:
            found = result["kinds"][kind.value]
            assert found["right"] != bool(LONE_CALLS[kind]), (kind, found)
            if LONE_CALLS[kind]:
                block = found["name"].rpartition(".")[0]
                assert f"{found['name']} was called by itself, outside of `{block}`" in found["text"]
            # Only the gradient of a shared output is a part.
            assert bool(found["no gradients"]) == (kind in (LayerKind.COLUMN, LayerKind.ROW))
        assert result["in_step"]


def test_a_block_is_right_in_every_form_and_a_layer_in_it_is_refused(world2: Any) -> None:
    for result in world2.run("scenarios.lone_layers:around"):
        assert all(result["right"].values()), result["right"]
        assert len(result["right"]) == 9
        for form, text in result["refused"].items():
            assert "called by itself, outside of `model.layers.0.mlp`" in text, form
        assert result["in_step"]


def test_modules_between_sharded_tokens_and_heads_are_refused(world2: Any) -> None:
    for result in world2.run("scenarios.lone_layers:sharded_tokens"):
        assert all("outside of `model`" in text for text in result["refused"].values()), result["refused"]
        assert result["right"]
        assert result["in_step"]
    for result in world2.run("scenarios.lone_layers:between_layers"):
        assert all("was called by itself" in text for text in result["refused"].values()), result["refused"]
        assert result["in_step"]
