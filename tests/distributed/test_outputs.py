"""A sharded model takes in and gives out what the unsharded one does, or refuses it by name."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed


def test_attentions_and_hidden_states_are_whole(world2: Any) -> None:
    for result in world2.run("scenarios.outputs:attentions_and_hidden_states"):
        assert all(result["shapes"])
        assert result["far"] < 1e-5
        assert result["gradient"] < 1e-5
        assert result["tuple"].startswith("EngineError: output_attentions with return_dict=False")
        assert result["plain"]
        assert result["in_step"]


def test_ids_and_labels_outside_of_the_vocabulary_are_refused_on_every_rank(world2: Any) -> None:
    for result in world2.run("scenarios.outputs:ids_and_labels_outside"):
        assert result["far"] < 1e-5
        assert all(text.startswith(f"EngineError: token id {value}") for value, text in result["ids"].items())
        assert all(text.startswith(f"EngineError: label {value}") for value, text in result["labels"].items())
        assert all(text.startswith("EngineError: ") for text in result["kinds"].values()), result["kinds"]
        assert max(*result["legal"], result["int32"]) < 1e-5
        assert result["nothing"], "the unsharded model's loss without a label is NaN too"
        assert result["in_step"]


def test_logits_beside_labels_are_whole_or_refused_when_they_are_read(world2: Any) -> None:
    for result in world2.run("scenarios.outputs:logits_beside_labels"):
        assert all(text.startswith("MissingOutputError: the logits") for text in result["refused"].values())
        assert result["smoothed"].startswith("MissingOutputError")
        assert result["unequal"] == []
        assert result["has"] == (False, False, True)
        assert result["tuple"]
        assert result["without gradients"]
        assert result["evaluation"]
        assert result["gradient"] < 1e-5
        assert result["in_step"]


def test_gather_logits_gives_them_in_training_with_labels(world2: Any) -> None:
    """Also the control of the test before: the same reads find the logits."""
    for result in world2.run("scenarios.outputs:logits_beside_labels", gather_logits=True):
        assert set(result["refused"].values()) == {""}
        assert result["smoothed"] == ""
        assert result["read"] == result["unequal"] == []
        assert result["has"] == (True, True, False)


def test_a_cache_can_be_passed_back_and_its_parts_can_not_be_read(world2: Any) -> None:
    for result in world2.run("scenarios.outputs:caches"):
        assert result["tokens"]
        assert result["far"] < 1e-5
        assert result["length"] == 0
        assert len(result["reads"]) == 8
        assert all(text.startswith("EngineError: past_key_values") for text in result["reads"].values()), result
        assert result["whole"][0] == 4
        assert result["in_step"]
