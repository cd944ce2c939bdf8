"""States of an optimizer in `tpinit checkpoint convert`: those of Adam and SGD; others are left out, and it is said."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from tpinit.cli.main import main
from tpinit.runtime.checkpoint.convert import Conversion, convert
from tpinit.runtime.checkpoint.deepspeed_files import DeepSpeedTensors
from tpinit.runtime.checkpoint.manifest import read_manifest
from tpinit.runtime.checkpoint.optimizer_states import OptimizerStates
from tpinit.runtime.checkpoint.schedule_states import check_schedule, deepspeed_schedule, stored_schedule
from tpinit.runtime.checkpoint.values import encode
from tpinit.runtime.errors import CheckpointError

from support.tiny_models import build, tokens

FILE = "mp_rank_00_model_states.pt"
Make = Callable[[nn.Module], Optimizer]


def trained(folder: Path, make: Make) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Train a tiny model with an optimizer of torch, and write it as DeepSpeed does; return the file and the states."""
    model: Any = build()
    model.save_pretrained(folder / "model")
    optimizer = make(model)
    for seed in range(3):
        model(input_ids=tokens(seed), labels=tokens(seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    states = {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}
    file = {"module": model.state_dict(), "optimizer": optimizer.state_dict(), "buffer_names": []}
    return file | {"global_steps": 3, "skipped_steps": 0, "global_samples": 6}, states


def write(folder: Path, file: dict[str, Any]) -> Path:
    folder.mkdir()
    torch.save(file, folder / FILE)
    return folder


MAKERS: dict[str, Make] = {
    "adam": lambda model: Adam(model.parameters(), lr=0.01, amsgrad=True),
    "groups": lambda model: AdamW(
        [
            {"params": [one for one in model.named_parameters() if one[1].ndim == 2]},
            {"params": [one for one in model.named_parameters() if one[1].ndim == 1], "weight_decay": 0.0},
        ]
    ),
    "momentum": lambda model: SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "plain": lambda model: SGD(model.parameters(), lr=0.1),
}


@pytest.mark.parametrize("name", MAKERS)
def test_states_come_back_bit_by_bit_from_every_cut(name: str, tmp_path: Path, capsys: Any) -> None:
    file, expected = trained(tmp_path, MAKERS[name])
    write(tmp_path / "ds1", file)
    steps: list[tuple[str, str, tuple[object, ...]]] = [
        ("ds1", "ours", ("tpinit",)),
        ("ours", "ds3", ("deepspeed", "--model", tmp_path / "model", "--tp-size", 3)),
        ("ds3", "ds2", ("deepspeed", "--model", tmp_path / "model", "--tp-size", 2)),
        ("ds2", "again", ("tpinit",)),
        ("again", "like", ("deepspeed", "--like", tmp_path / "ds3")),
    ]
    for source, output, to in steps:
        words = ["checkpoint", "convert", tmp_path / source, tmp_path / output, "--to", *to]
        assert main(list(map(str, words))) == 0
    assert "left out" not in capsys.readouterr().out
    tensors = DeepSpeedTensors(tmp_path / "like" / "converted")
    states = tensors.states
    assert isinstance(states, OptimizerStates)
    assert states.counters == {"global_steps": 3, "skipped_steps": 0, "global_samples": 6}
    given = file["optimizer"]["param_groups"]
    assert [dict(group.options) for group in states.groups] == [
        {key: value for key, value in group.items() if key not in ("params", "param_names")} for group in given
    ]
    for parameter, state in expected.items():
        plain = {key: value for key, value in state.items() if value is None or value.numel() == 1}
        assert states.numbers.get(parameter, {}) == {k: v if v is None else float(v) for k, v in plain.items()}
        assert sorted(states.tensors.get(parameter, [])) == sorted(state.keys() - plain.keys())
        for key in states.tensors.get(parameter, []):
            assert torch.equal(states.read(key, parameter), state[key])
    if name == "adam":
        first = torch.load(tmp_path / "ds3" / "converted" / FILE, weights_only=True)["optimizer"]
        assert first["state"][1]["exp_avg"].shape == (16, 32)  # of the query weights, as they are cut
        assert first["state"][1]["step"] == 3
        whole = AdamW(build().parameters())
        whole.load_state_dict(torch.load(tmp_path / "ds1" / FILE, weights_only=True)["optimizer"])


def test_a_count_that_fused_adam_keeps_for_one_parameter_is_that_of_all(tmp_path: Path) -> None:
    file, _ = trained(tmp_path, MAKERS["adam"])
    optimizer = file["optimizer"]
    optimizer["param_groups"][0] |= {"bias_correction": True, "step": 0}
    for number, state in optimizer["state"].items():
        state["step"] = 3 if number == max(optimizer["state"]) else 0
    states = DeepSpeedTensors(write(tmp_path / "ds", file)).states
    assert isinstance(states, OptimizerStates)
    assert list(states.numbers.values()) == [{"step": 3.0}] * 21
    optimizer["param_groups"][0]["bias_correction"] = False
    assert "without bias_correction" in str(DeepSpeedTensors(write(tmp_path / "uncorrected", file)).states)


def test_states_without_a_place_are_left_out_with_the_reason(tmp_path: Path) -> None:
    file, _ = trained(tmp_path, MAKERS["adam"])
    changed: dict[str, dict[str, Any]] = {}
    for name in ("groups", "key", "half"):
        changed[name] = copy.deepcopy(file)
    options = changed["groups"]["optimizer"]["param_groups"][0]
    first, rest = options["params"][:1], options["params"][1:]
    changed["groups"]["optimizer"]["param_groups"] = [options | {"params": first}, options | {"params": rest}]
    changed["key"]["optimizer"]["state"][0]["exp_inf"] = torch.zeros(64, 32)
    changed["half"]["optimizer"]["state"][0]["exp_avg"] = torch.zeros(64, 32).bfloat16()
    changed["flat"] = file | {"optimizer": {"fp32_groups_flat": [torch.zeros(3)], "optimizer_state_dict": {}}}
    changed["weights"] = file | {"module": {name: one.bfloat16() for name, one in file["module"].items()}}
    words = {
        "groups": "the optimizer has 2 groups of 1, 20 parameters without param_names, and the model 21",
        "key": "exp_inf of model.embed_tokens.weight is a state that tpinit knows no place for",
        "half": "exp_avg of model.embed_tokens.weight is torch.bfloat16",
        "flat": r"flat form of DeepSpeed's ZeRO and 16-bit optimizers \(fp32_groups_flat",
        "weights": "they belong to fp32 weights, and model.embed_tokens.weight is bfloat16",
    }
    assert words.keys() == changed.keys()
    for name, text in words.items():
        said: list[str] = []
        convert(write(tmp_path / name, changed[name]), tmp_path / f"{name} ours", Conversion("tpinit"), said.append)
        assert len(said) == 1
        with pytest.raises(AssertionError, match=text):
            raise AssertionError(said[0])
    said = []
    convert(write(tmp_path / "whole", file), tmp_path / "ours", Conversion("tpinit"), said.append)
    assert said == []
    convert(tmp_path / "ours", tmp_path / "hf", Conversion("huggingface"), said.append)
    assert said == ["the states of the optimizer are left out: a directory of transformers has none"]
    half = Conversion("deepspeed", model=tmp_path / "model", tp_size=2, dtype=torch.bfloat16)
    convert(tmp_path / "ours", tmp_path / "half files", half, said.append)
    assert "they belong to fp32 weights" in said[1]
    (tmp_path / "whole" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    write(tmp_path / "zero", file | {"optimizer": None})
    (tmp_path / "zero" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    convert(tmp_path / "zero", tmp_path / "zero ours", Conversion("tpinit"), said.append)
    assert "in files of their own" in said[2]


LAMBDA = {"base_lrs": [0.1], "last_epoch": 3, "_step_count": 4, "_last_lr": [0.05], "lr_lambdas": [{"a": 1}]}


@pytest.mark.parametrize("state", [{"last_batch_iteration": 2}, LAMBDA, None])
def test_the_state_of_a_schedule_goes_both_ways(state: Any, tmp_path: Path) -> None:
    file, _ = trained(tmp_path, MAKERS["groups"])
    for group in file["optimizer"]["param_groups"]:
        group["initial_lr"] = 1.0
    said: list[str] = []
    convert(
        write(tmp_path / "ds", file | {"lr_scheduler": state}), tmp_path / "ours", Conversion("tpinit"), said.append
    )
    back = Conversion("deepspeed", model=tmp_path / "model", tp_size=2)
    convert(tmp_path / "ours", tmp_path / "back", back, said.append)
    assert said == []
    for rank in range(2):
        found = torch.load(tmp_path / "back" / "converted" / f"mp_rank_0{rank}_model_states.pt", weights_only=True)
        assert found["lr_scheduler"] == state
        # The 1 is what our schedules leave there; a schedule of torch needs its own.
        kept = ["initial_lr" in group for group in found["optimizer"]["param_groups"]]
        assert kept == [state is None or "last_epoch" in state] * 2


def test_the_state_of_an_unknown_schedule_is_left_out_with_the_reason(tmp_path: Path) -> None:
    file, _ = trained(tmp_path, MAKERS["plain"])
    said: list[str] = []
    unknown = write(tmp_path / "ds", file | {"lr_scheduler": {"num_iters": 3, "start_lr": 0.1}})
    convert(unknown, tmp_path / "ours", Conversion("tpinit"), said.append)
    assert len(said) == 1
    assert "the state of the schedule is left out: its state has num_iters, start_lr" in said[0]
    assert read_manifest(tmp_path / "ours" / "converted").page["scheduler"] is None
    own = {"class": "mine.Noam", "state": encode({"num_iters": 3}, "state")}
    assert "it is of a mine.Noam, and its state has num_iters" in str(stored_schedule(own))


def test_the_state_of_a_schedule_fits_schedules_with_the_same_attributes_alone() -> None:
    own = {**LAMBDA, "_is_initial": False}
    assert check_schedule(own, LAMBDA | {"verbose": False}, "LambdaLR") == LAMBDA
    for stored, text in (
        ({"last_batch_iteration": 2}, "last_batch_iteration"),
        (LAMBDA | {"gamma": 0.5}, "gamma is in one of them alone"),
        ({key: value for key, value in LAMBDA.items() if key != "base_lrs"}, "base_lrs is in one of them alone"),
        (LAMBDA | {"step": 1}, "step is in one of them alone"),
    ):
        with pytest.raises(CheckpointError, match=text):
            check_schedule(own, stored, "LambdaLR")
    with pytest.raises(CheckpointError, match="differs between the files of the ranks"):
        deepspeed_schedule([{"lr_scheduler": LAMBDA}, {"lr_scheduler": LAMBDA | {"last_epoch": 4}}])
    with pytest.raises(ValueError, match="last_epoch is 3, and must be an integer"):
        check_schedule(own, LAMBDA | {"last_epoch": "3"}, "LambdaLR")


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "list": (lambda file: file.update(optimizer=[1]), "they are a list"),
    "groups": (lambda file: file["optimizer"].update(param_groups=7), "can't be read"),
    "number": (lambda file: file["optimizer"]["state"].update({99: {"step": 1}}), "KeyError: 99"),
    "entry": (lambda file: file["optimizer"]["state"].update({0: 7}), "can't be read"),
    "shape": (lambda file: file["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)), "has shape [3] on rank 0"),
    "text": (lambda file: file["optimizer"]["state"][0].update(exp_avg="x"), "is no dense tensor"),
    "step": (lambda file: file["optimizer"]["state"][0].update(step=torch.zeros(2)), "can't be read"),
    "twice": (lambda file: file["optimizer"]["param_groups"][0]["params"].__setitem__(1, 0), "given twice"),
    "names": (lambda file: file["optimizer"]["param_groups"][0].update(param_names=["x"] * 21), "is unknown"),
    "count": (lambda file: file.update(global_steps=-1), "global_steps is -1"),
    "schedule": (lambda file: file.update(lr_scheduler=[3]), "it is a list"),
    "iteration": (lambda file: file.update(lr_scheduler={"last_batch_iteration": 1.5}), "last_batch_iteration is 1.5"),
    "before": (lambda file: file.update(lr_scheduler={"last_batch_iteration": -2}), "last_batch_iteration is -2"),
}


def test_states_that_are_none_are_one_line_each(tmp_path: Path) -> None:
    file, _ = trained(tmp_path, MAKERS["adam"])
    for name, (damage, text) in DAMAGES.items():
        changed = copy.deepcopy(file)
        damage(changed)
        with pytest.raises(CheckpointError) as raised:
            convert(write(tmp_path / name, changed), tmp_path / "out", Conversion("tpinit"))
        message = str(raised.value)
        assert text in message, (name, message)
        assert "\n" not in message
        assert len(message) < 500
    assert not (tmp_path / "out").exists()
