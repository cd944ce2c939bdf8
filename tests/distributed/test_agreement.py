"""Every row of the table in real processes, and inputs that every rank refuses: same error, no hang, no change."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed

ROWS = {
    1: ("NO_TP_INTENT", None),
    2: (None, None),
    3: (None, "created"),
    4: (None, "mpu.tp_group"),
    5: ("NO_GROUP_SOURCE", None),
    6: (None, "mpu.tp_group"),
    7: (None, "created"),
    8: (None, "mpu.tp_group"),
    9: (None, "call.tp_group"),
    10: ("GROUP_AND_MPU", None),
    11: (None, "call.tp_group"),
    12: ("GROUP_AND_MPU", None),
}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("number", ROWS)
def test_every_row_in_real_processes(worlds: Any, size: int, number: int) -> None:
    results = worlds[size].run("scenarios.agreement:initialize_by_row", number=number)
    code, source = ROWS[number]
    for result in results:
        if code is not None:
            assert result["error"]["type"] == "DecisionError"
            assert code in result["error"]["codes"]
            assert result["error"]["text"] == results[0]["error"]["text"]
            assert result["untouched"]
            continue
        assert result["error"]["type"] is None, result["error"]["text"]
        assert (result["row"], result["source"], result["steps"]) == (number, source, 1)
        sharded = number != 2
        assert result["shape"] == ((32 // size, 32) if sharded else (32, 32))
        # The decision's dtype is what the parameters have; without a decision they keep their own.
        assert result["dtypes"] == (["torch.bfloat16"] if sharded else ["torch.float32"])


def test_ranks_that_agree_send_a_hash_and_no_more(world2: Any) -> None:
    for result in world2.run("scenarios.agreement:exchange_reports", same=True):
        assert result == {"own": [0, 0], "lengths": [32]}
    for result in world2.run("scenarios.agreement:exchange_reports", same=False):
        assert result["own"] == [0, 1]
        assert result["lengths"][0] == 32
        assert result["lengths"][1] > 1000


DIFFERENT = {
    "other learning rate": "config.optimizer.params.lr",
    "other size": "config.tensor_parallel.autotp_size",
    "other dtype": "config.tensor_parallel.dtype",
    "no section": "decision.row",
    "one call less": "tp_model_init",
    "malformed on one rank": "error",
    "missing file on one rank": "error",
    "other shape": "plan.model.layers.0.mlp.gate_proj.weight",
    "other weights": "model.model.embed_tokens.weight",
    "frozen on one rank": "model.trainable",
    "other model class": "error",
    "no model on one rank": "error",
    "group that leaves ranks out": "error",
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_ranks_that_differ_all_raise_and_name_the_difference(world4: Any, case: str) -> None:
    results = world4.run("scenarios.agreement:initialize_refused", timeout=20, case=case)
    for result in results:
        assert result["type"] == "AgreementError", result
        assert result["text"] == results[0]["text"]
        assert DIFFERENT[case] in result["fields"]
        assert "rank 3" in result["text"]
        assert result["untouched"]
        assert result["collective"]


def test_ranks_with_different_views_of_the_groups_all_raise(world4: Any) -> None:
    results = world4.run("scenarios.agreement:initialize_refused", timeout=20, case="other views of the groups")
    for result in results:
        assert result["type"] == "AgreementError"
        assert result["text"] == results[0]["text"]
        assert "does not partition the world of 4" in result["text"]
        assert "rank 2 has [0, 2]" in result["text"]
        assert result["collective"]


REFUSED = {
    "mpu that does not cross once": ("GroupError", "do not cross exactly once"),
    "row 2 without a data-parallel group": ("GroupError", "no data-parallel group"),
    "mesh tuple": ("ConfigError", "has no tensor-parallel dimension"),
    "mesh without tp": ("ConfigError", "needs one dimension named tp"),
    "mesh with another dimension": ("ConfigError", "['pp']"),
    "unknown model": ("PlanError", "give a small batch of keyword arguments as `example`"),
    "nothing to cut": ("PlanError", "fits its sizes"),
    "forward that can't be run": ("PlanError", "can't be run on a small batch"),
    "stale gradient": ("PlanError", "zero_grad"),
    "meta": ("TpinitError", "meta device"),
    "offload": ("UnsupportedError", "zero_optimization.offload_optimizer"),
    "universal checkpoint": ("UnsupportedError", "checkpoint.load_universal"),
    "amp": ("UnsupportedError", "amp"),
    "unknown key": ("UnsupportedError", "did you mean gradient_clipping?"),
    "overlap": ("UnsupportedError", "tensor_parallel.tp_overlap_comm"),
    "partition config": ("PlanError", "shards no layer of this model"),
    "vocab parallel cross-entropy": ("UnsupportedError", "tensor_parallel.vocab_parallel_ce_backend"),
    "preset of another model": ("PlanError", "preset_model bloom can't be followed"),
    "grain size": ("UnsupportedError", "tensor_parallel.tp.tp_grain_size"),
    "batch does not add up": ("ConfigError", "train_batch_size"),
    "unknown optimizer": ("ConfigError", "Adam, AdamW, SGD"),
    "unknown optimizer parameter": ("ConfigError", "optimizer.params.learning_rate"),
    "two configs": ("TpinitError", "config, config_params"),
    "optimizer with state": ("UnsupportedError", "already has state"),
    "optimizer of another model": ("PlanError", "not the model's"),
    "another config for the call": ("TpinitError", "train_batch_size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_inputs_are_refused_before_anything_is_sharded(world4: Any, case: str) -> None:
    kind, words = REFUSED[case]
    for result in world4.run("scenarios.agreement:initialize_refused", timeout=20, case=case):
        assert result["type"] == kind, result
        assert words in result["text"]
        assert result["untouched"]
        assert result["collective"]
