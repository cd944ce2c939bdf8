"""A pickle of a sharded model is a rank's part, which computes in its place only and says so elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed


def test_what_is_read_in_its_place_is_the_model_that_was_pickled(world2: Any) -> None:
    for result in world2.run("scenarios.pickled:round_trips"):
        assert len(result["found"]) == 10
        assert all(result["found"].values()), result["found"]
        assert result["in_step"]


def test_a_part_can_be_read_nowhere_else(world2: Any) -> None:
    for rank, result in enumerate(world2.run("scenarios.pickled:elsewhere")):
        texts = result["texts"]
        assert all(text.startswith("EngineError: ") for text in texts.values()), texts
        part = "EngineError: this pickle is part {} of 2 of a transformers.models.llama.modeling_llama.LlamaForCausalLM"
        assert texts["another rank"].startswith(part.format(2 - rank))
        for case in ("destroyed", "another plan", "another dtype"):
            assert texts[case].startswith(part.format(rank + 1)), case
            assert "of rank" in texts[case]
            assert "save_pretrained(folder)" in texts[case]
        for case in ("a hook", "a hook there"):
            assert "model has a forward hook of its own" in texts[case], case
        assert "model.beside holds a module or parameter" in texts["a parameter beside"]
        assert (result["right"], result["again"], result["in_step"]) == (True, True, True)


def test_a_model_of_tp_size_one_is_whole(world2: Any) -> None:
    for result in world2.run("scenarios.pickled:of_size_one"):
        assert result == {"equal": True, "class": True, "in_step": True}


@pytest.mark.parametrize(("family", "parallel"), [("mixtral", False), ("bloom", False), ("llama", True)])
def test_each_kind_of_conversion_is_read(world2: Any, family: str, parallel: bool) -> None:
    for result in world2.run("scenarios.pickled:of_family", family=family, parallel=parallel):
        assert result["gradients"] > 10
        assert result["gap"] < 1e-6
        assert result["in_step"]
