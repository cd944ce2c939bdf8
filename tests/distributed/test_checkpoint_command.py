"""`tpinit checkpoint` reads what ranks saved, without ranks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tpinit.cli.main import main
from transformers import LlamaForCausalLM

from support.tiny_models import build

pytestmark = pytest.mark.distributed


@pytest.fixture
def saved(world2: Any, tmp_path: Path) -> Path:
    world2.run("scenarios.save_load:export", folder=str(tmp_path))
    return tmp_path


def test_a_checkpoint_is_shown_and_written_as_a_directory_of_transformers(saved: Path, capsys: Any) -> None:
    assert main(["checkpoint", "inspect", str(saved / "run"), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["counters"]["global_steps"] == 4
    assert page["tensors"]["model"]["dtypes"] == ["bfloat16"]
    assert page["tensors"]["master"]["dtypes"] == ["float32"]
    assert main(["checkpoint", "inspect", str(saved / "run" / "global_step4")]) == 0
    assert "all sums are right" in capsys.readouterr().out
    expected = LlamaForCausalLM.from_pretrained(saved / "model").state_dict()
    for options in ([], ["--masters"]):
        output = saved / f"output{len(options)}"
        arguments = ["checkpoint", "consolidate", str(saved / "run"), str(output), "--model", str(saved / "model")]
        assert main([*arguments, *options]) == 0
        found = LlamaForCausalLM.from_pretrained(output, dtype=torch.float32 if options else "auto").state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(value.bfloat16(), expected[name].bfloat16()) for name, value in found.items())
        assert any(bool((value != value.bfloat16()).any()) for value in found.values()) == bool(options)
    assert sorted(path.name for path in saved.iterdir()) == ["model", "output0", "output1", "run"]


def test_a_converted_model_is_loaded_with_its_master_copies(world2: Any, tmp_path: Path, capsys: Any) -> None:
    model: Any = build(seed=3)
    model.save_pretrained(tmp_path / "model")
    assert main(["checkpoint", "convert", str(tmp_path / "model"), str(tmp_path / "run"), "--to", "tpinit",
                 "--dtype", "bf16"]) == 0  # fmt: skip
    first, _ = world2.run("scenarios.save_load:load_converted", folder=str(tmp_path / "run"), tp=2)
    expected = model.state_dict()
    assert first["state"].keys() == expected.keys()
    assert all(torch.equal(value, expected[name].bfloat16()) for name, value in first["state"].items())
    assert "model.norm.weight" in first["masters"]
    assert all(torch.equal(value, expected[name]) for name, value in first["masters"].items())
    assert first["refused"]["type"] == "CheckpointError"
    assert "load_module_only=True" in first["refused"]["text"]
    assert first["finite"]


@pytest.mark.parametrize(
    ("maker", "other", "dtype", "schedule", "strange"),
    [("adamw", "sgd", "bf16", "cosine", "lambda"), ("sgd", "adamw", "fp32", "lambda", "exponential")],
)
def test_a_run_goes_on_from_deepspeeds_files_bit_by_bit(
    world2: Any, tmp_path: Path, maker: str, other: str, dtype: str, schedule: str, strange: str
) -> None:
    options = {"maker": maker, "other": other, "dtype": dtype, "schedule": schedule, "strange": strange}
    for result in world2.run("scenarios.save_load:through_deepspeed", folder=str(tmp_path), **options):
        assert result["said"] == []
        assert result["losses"] == [0.0] * 6
        assert set(result["loaded"]) | set(result["different"]) <= {"torch"}  # there is no dropout
        assert "take the one that wrote them" in result["refused"][0]
        assert "the state of the schedule is not that of this run's" in result["refused"][1]
        assert "load_lr_scheduler_states=False" in result["refused"][1]
        assert "lr" in result["without"]
        assert result["in_step"]


def test_a_damaged_checkpoint_and_a_full_folder_are_errors(saved: Path, capsys: Any) -> None:
    assert main(["checkpoint", "consolidate", str(saved / "run"), str(saved / "model")]) == 1
    assert "is not an empty folder" in capsys.readouterr().err
    os.truncate(next((saved / "run").glob("*/*.distcp")), 10)
    for arguments in (["inspect", str(saved / "run")], ["consolidate", str(saved / "run"), str(saved / "output")]):
        assert main(["checkpoint", *arguments]) == 1
        assert "has 10 bytes" in capsys.readouterr().err
    assert main(["checkpoint", "inspect", str(saved / "model")]) == 1
    assert not (saved / "output").exists()
