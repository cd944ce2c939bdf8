"""The probe passes plans that are exact, and refuses plans that leave something out."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_oss", "bert"])
def test_the_probe_passes_an_exact_plan(world2: Any, name: str) -> None:
    for result in world2.run("scenarios.probe:initialize_with_probe", name=name):
        assert result["text"] == ""


def test_the_probe_passes_a_model_with_dropout(world2: Any) -> None:
    for result in world2.run(
        "scenarios.probe:initialize_with_probe", name="gpt2", resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.5
    ):
        assert result["text"] == ""


@pytest.mark.parametrize(("name", "how"), [("llama", "entry"), ("mixtral", "sum"), ("gpt_oss", "once")])
def test_the_probe_refuses_a_broken_plan_before_anything_is_sharded(world2: Any, name: str, how: str) -> None:
    results = world2.run("scenarios.probe:initialize_with_probe", name=name, break_with=how)
    assert len({result["text"] for result in results}) == 1
    for result in results:
        assert result["text"].startswith("PlanError: the sharded model differs from the unsharded one")
        assert result["untouched"]
