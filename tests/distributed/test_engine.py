"""What initialize keeps, precision, records, configs, data, the engine's order, optimizers and schedules."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed


def test_initialize_keeps_the_users_objects(world4: Any) -> None:
    for result in world4.run("scenarios.engine:keep_user_model"):
        hook, rest, names = result.pop("hook"), result.pop("rest"), result.pop("names")
        assert all(result.values()), result
        assert hook == [(2, 12, 32)]
        assert rest == (True, None, None)
        assert names == [("model.embed_tokens.weight", "lm_head.weight")]


def test_bf16_has_fp32_masters(world2: Any) -> None:
    for result in world2.run("scenarios.engine:train_in_low_precision", dtype="bf16"):
        assert result["parameters"] == ["torch.bfloat16"]
        assert result["masters"] == ["torch.float32"]
        assert result["buffers"] == ["torch.float32"]
        assert result["published"]
        assert result["apart"] < 2e-2
        assert result["norm"] == pytest.approx(1, abs=5e-2)
        assert result["scales"] == [1.0] * 5


def test_fp16_scales_its_loss(world2: Any) -> None:
    for result in world2.run(
        "scenarios.engine:train_in_low_precision", dtype="fp16", fp16={"initial_scale_power": 8, "loss_scale_window": 2}
    ):
        assert result["parameters"] == ["torch.float16"]
        assert result["masters"] == ["torch.float32"]
        assert result["published"]
        assert result["apart"] < 1e-2
        assert result["norm"] == pytest.approx(1, abs=2e-2)
        assert result["scales"] == [256.0, 256.0, 256.0, 512.0, 512.0]
        assert result["skipped"] == 0


def test_an_fp16_overflow_skips_the_step_on_every_rank(world2: Any) -> None:
    for result in world2.run(
        "scenarios.engine:train_in_low_precision", dtype="fp16", fp16={"initial_scale_power": 40, "hysteresis": 1}
    ):
        assert result["skipped"] == 4
        assert result["scales"] == [2.0 ** (40 - halved) for halved in range(5)]


def test_a_static_scale_stays(world2: Any) -> None:
    for result in world2.run("scenarios.engine:train_in_low_precision", dtype="fp16", fp16={"loss_scale": 64}):
        assert result["scales"] == [64.0] * 5
        assert result["norm"] == pytest.approx(1, abs=2e-2)


def test_replicas_stay_equal_bit_for_bit(world4: Any) -> None:
    assert [result["unequal"] for result in world4.run("scenarios.engine:compare_replicas")] == [[]] * 4


def test_calls_of_tp_model_init(world2: Any) -> None:
    for result in world2.run("scenarios.engine:record_calls"):
        errors = result["errors"]
        assert errors["same again"]["type"] is None
        assert errors["other model"]["type"] is None
        for what in ("size", "dtype", "group", "no group"):
            assert errors[what]["type"] == "ConflictingCallsError"
            assert "CONFLICTING_CALLS" in errors[what]["text"]
        assert "tp_group" in errors["keyword"]["text"]
        assert errors["keyword"]["type"] == "TpinitError"
        assert errors["dtype word"]["type"] == "ConfigError"
        assert errors["not a model"]["type"] == "TpinitError"
        assert errors["first try"]["type"] == "UnsupportedError"
        assert errors["again"]["type"] == "TpinitError"
        assert "already initialized" in errors["again"]["text"]
        assert (result["returned"], result["still"], result["consumed"], result["row"]) == (True, True, True, 9)
        assert len(result["warned"]) == 1
        assert "only records" in result["warned"][0]
        assert result["weak"]


def test_configs_from_every_place(world4: Any, tmp_path: Path) -> None:
    config = {
        "train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
        "tensor_parallel": {"autotp_size": 2},
    }
    (tmp_path / "ds.json").write_text(json.dumps(config))
    for result in world4.run("scenarios.engine:read_configs", folder=str(tmp_path)):
        assert result["kept"]
        # 8 samples over 2 data-parallel ranks in 2 micro batches are 2 samples each.
        assert set(result["rows"].values()) == {(3, (8, 2, 2))}


def test_the_loader_feeds_tp_groups(world4: Any) -> None:
    results = world4.run("scenarios.engine:feed_data")
    for case in range(2):
        by_group: dict[tuple[int, ...], list[Any]] = {}
        for result in results:
            ranks, seen, steps = result["loaders"][case]
            assert steps == 4
            assert by_group.setdefault(ranks, seen) == seen
        assert sorted(sample for seen in by_group.values() for sample in seen) == results[0]["all"]


def test_different_inputs_in_a_tp_group_raise_on_all_its_ranks(world4: Any) -> None:
    results = world4.run("scenarios.engine:run_on_different_inputs")
    for result in results[:2]:
        assert result["type"] == "AgreementError"
        assert result["text"] == results[0]["text"]
        assert "input input_ids" in result["fields"]
    assert [result["type"] for result in results[2:]] == [None, None]
    assert all(result["collective"] for result in results)


def test_the_engine_out_of_order(world2: Any) -> None:
    for result in world2.run("scenarios.engine:call_out_of_order"):
        errors = result["errors"]
        assert {error["type"] for error in errors.values()} == {"EngineError"}
        assert "without a backward" in errors["step first"]["text"]
        assert "needs an optimizer" in errors["no optimizer"]["text"]
        assert "got a float" in errors["a number"]["text"]
        assert "of shape [2, 12, " in errors["logits"]["text"]
        assert "no trained parameter" in errors["detached"]["text"]
        assert result["boundaries"] == [False, True, False, True]
        assert result["norms"] == [False, True, True, True]
        assert result["scaled"] == pytest.approx(0.5)
        assert result["steps"] == (2, 4)
        assert result["bare"] is None
        assert result["lr"] == [0.05]
        assert "model.embed_tokens.weight" in result["text"][0]
        assert json.loads(json.dumps(result["text"][1]))["cut"] == "column"


@pytest.mark.parametrize("how", ["object", "callable"])
def test_a_users_optimizer_continues_with_the_sharded_parameters(world2: Any, how: str) -> None:
    for result in world2.run("scenarios.engine:train_with_user_optimizer", how=how):
        assert result["apart"] < 1e-5
        assert result["same"]
        assert result["rate"] == [1e-5, 1e-5]


def test_schedules(world2: Any) -> None:
    log = [0.0] + [0.1 * math.log(step + 1) / math.log(4) for step in range(4)] + [0.1] * 4
    assert world2.run("scenarios.engine:learning_rates", kind="WarmupLR")[0] == pytest.approx(log)
    linear = [0.0, 0.0, 0.025, 0.05, 0.075, 0.1, 0.075, 0.05, 0.025]
    assert world2.run("scenarios.engine:learning_rates", kind="WarmupDecayLR")[0] == pytest.approx(linear)


def test_ranks_that_used_different_parameters_average_correctly(world2: Any) -> None:
    for result in world2.run("scenarios.engine:train_with_unused_parameters"):
        assert result["grad"]
        assert result["collective"]


def test_row_2_does_not_change_the_parts_of_the_model(world4: Any) -> None:
    results = world4.run("scenarios.engine:train_row_2", how="parts differ")
    assert [result["type"] for result in results] == [None] * 4
    assert results[0]["losses"] == results[1]["losses"] != results[2]["losses"] == results[3]["losses"]


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [("clipping", "UnsupportedError", "gradient_clipping"), ("replicas differ", "AgreementError", "rank 1 has")],
)
def test_row_2_refuses_what_would_be_silently_wrong(world4: Any, how: str, kind: str, words: str) -> None:
    for result in world4.run("scenarios.engine:train_row_2", how=how):
        assert result["type"] == kind
        assert words in result["text"]
        assert result["collective"]
