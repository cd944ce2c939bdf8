"""Each row of the tables of calls that is right, guarded or refused is so in a real group (training/call_table.py)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from tpinit.runtime.training.call_table import (
    MODULE_CALLS,
    PEFT_CALLS,
    REFUSED,
    TRANSFORMERS_CALLS,
    Answer,
    PublicName,
)

pytestmark = pytest.mark.distributed

ELSEWHERE = {
    "compile": "test_compile",
    "load_state_dict": "test_state_dicts",
    "save_pretrained": "test_state_dicts, test_calls",
    "generate": "test_call_check, test_randomness",
    "loss_function": "test_outputs",
    **dict.fromkeys((name for name in dir(__import__("torch").nn.Module) if "_hook" in name), "test_changes"),
}
"""Names whose check is in another file."""


def needed(*tables: Iterable[PublicName]) -> set[str]:
    answers = (Answer.RIGHT, Answer.GUARDED)
    return {name for table in tables for call in table if call.answer in answers for name in call.names} - {*ELSEWHERE}


def test_names_that_are_right_give_what_the_unsharded_model_gives(world2: Any) -> None:
    checked: set[str] = set()
    for scenario in ("module_calls", "adapter_calls", "native_adapter_calls", "experts_implementation"):
        for result in world2.run(f"scenarios.every_call:{scenario}"):
            assert all(result["results"].values()), (scenario, result["results"])
            assert result["in_step"]
            checked |= {*result["results"]}
    assert needed(MODULE_CALLS, TRANSFORMERS_CALLS, PEFT_CALLS) - checked == {"set_experts_implementation"}


def test_refused_names_are_refused_on_models_submodules_and_engines(world2: Any) -> None:
    for result in world2.run("scenarios.every_call:refused_names"):
        assert result.pop("apart") == ""
        assert [name for name, text in result.items() if not text.startswith("EngineError")] == []
        assert "before initialize" in result["model.resize_token_embeddings"]
        called = {name.partition(".")[2] for name in result}
        assert {*REFUSED} - called <= {name for call in PEFT_CALLS for name in call.names} | {"prune_heads"}


def test_a_wrong_answer_is_seen(world2: Any) -> None:
    assert world2.run("scenarios.every_call:without_guards") == [False, False]
