"""`tpinit checkpoint convert`: a model between our checkpoints, directories of transformers and DeepSpeed's files."""

from __future__ import annotations

import collections
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tpinit.cli.main import main
from tpinit.runtime.checkpoint.convert import Conversion, convert
from tpinit.runtime.checkpoint.deepspeed_cuts import TensorCut, read_cuts, written_cuts
from tpinit.runtime.checkpoint.deepspeed_files import DeepSpeedTensors
from tpinit.runtime.errors import CheckpointError, LoadError
from transformers import AutoModelForCausalLM

from support.live_bytes import LiveBytes
from support.tiny_models import build

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "biases": ("qwen2", {"intermediate_size": 50}),
    "tied": ("llama", {"tie_word_embeddings": True}),
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def saved(folder: Path, family: str = "llama", **options: Any) -> nn.Module:
    """Write a tiny model as a directory of transformers, and return it."""
    model = build(family, **options)
    model.save_pretrained(folder)  # type: ignore[operator]  # transformers' method
    return model


def command(*arguments: object) -> int:
    return main(["checkpoint", "convert", *map(str, arguments)])


def states(folder: Path) -> list[dict[str, Any]]:
    paths = sorted((folder / "converted").glob("mp_rank_*"))
    return [torch.load(path, weights_only=True) for path in paths]


def same(model: nn.Module, folder: Path) -> bool:
    found = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    expected = model.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_goes_through_all_layouts_bit_by_bit(name: str, tmp_path: Path) -> None:
    family, options = MODELS[name]
    model, base = saved(tmp_path / "hf", family, **options), tmp_path / "hf"
    small = ("--shard-size", 1)
    assert command(base, tmp_path / "ours", "--to", "tpinit") == 0
    assert main(["checkpoint", "inspect", str(tmp_path / "ours")]) == 0
    assert command(tmp_path / "ours", tmp_path / "hf2", "--to", "huggingface", "--model", base, *small) == 0
    assert command(tmp_path / "ours", tmp_path / "ds3", "--to", "deepspeed", "--model", base, "--tp-size", 3) == 0
    assert command(tmp_path / "ds3", tmp_path / "ds2", "--to", "deepspeed", "--model", base, "--tp-size", 2) == 0
    assert command(base, tmp_path / "like", "--to", "deepspeed", "--like", tmp_path / "ds3") == 0
    assert command(tmp_path / "ds2", tmp_path / "ours2", "--to", "tpinit") == 0  # without the model's directory
    assert command(tmp_path / "ours2", tmp_path / "hf3", "--to", "huggingface", "--model", base) == 0
    assert same(model, tmp_path / "hf2")
    assert same(model, tmp_path / "hf3")
    three, like = states(tmp_path / "ds3"), states(tmp_path / "like")
    assert [len(three), len(states(tmp_path / "ds2"))] == [3, 2]
    for one, other in zip(three, like, strict=True):
        assert one["module"].keys() == model.state_dict().keys() == other["module"].keys()
        assert all(torch.equal(value, other["module"][key]) for key, value in one["module"].items())
    queries = [one["module"]["model.layers.0.self_attn.q_proj.weight"].shape[0] for one in three]
    assert queries == [16, 8, 8]  # 4 key/value heads over 3 ranks: DeepSpeed cuts by these
    rows = [one["module"]["model.layers.0.mlp.down_proj.weight"].shape for one in three]
    assert {row[0] for row in rows} == {32}
    assert sum(row[1] for row in rows) == options.get("intermediate_size", 48)


def test_fp32_weights_stay_as_masters_behind_16_bits(tmp_path: Path) -> None:
    model = saved(tmp_path / "hf")
    assert command(tmp_path / "hf", tmp_path / "ours", "--to", "tpinit", "--dtype", "bf16") == 0
    manifest = json.loads((tmp_path / "ours" / "converted" / "tpinit.json").read_bytes())
    assert {entry["dtype"] for name, entry in manifest["tensors"].items() if name.startswith("model.")} == {"bfloat16"}
    to = ("--to", "huggingface", "--model", tmp_path / "hf")
    assert command(tmp_path / "ours", tmp_path / "back", *to, "--masters") == 0
    assert same(model, tmp_path / "back")
    assert command(tmp_path / "ours", tmp_path / "half", *to) == 0
    assert not same(model, tmp_path / "half")


@pytest.mark.parametrize("kind", ["tpinit", "huggingface", "deepspeed"])
def test_no_more_than_one_part_and_one_tensor_is_in_memory(kind: str, tmp_path: Path) -> None:
    model, source = saved(tmp_path / "hf", num_hidden_layers=6, vocab_size=128), tmp_path / "hf"
    sizes = [parameter.nbytes for parameter in model.parameters()]
    options = Conversion(kind, tp_size=4 if kind == "deepspeed" else None)
    if kind == "huggingface":
        source = tmp_path / "source"
        convert(tmp_path / "hf", source, Conversion("tpinit"))
    convert(source, tmp_path / "warm", options)
    with LiveBytes() as seen:
        convert(source, tmp_path / "out", options)
    part = 0
    if kind == "deepspeed":
        part = max(sum(value.nbytes for value in one["module"].values()) for one in states(tmp_path / "out"))
        tensors = DeepSpeedTensors(tmp_path / "out" / "converted")
        with LiveBytes() as reading:
            assert [tensors.read(name).nbytes for name in tensors.specs] == sizes
        assert max(sizes) <= reading.peak <= 2 * max(sizes)
    small = 4096  # buffers of the model, which are computed
    assert max(sizes) <= seen.peak <= part + 2 * max(sizes) + small  # a tensor, and its slice or copy for the file
    assert part + 2 * max(sizes) + small < 0.7 * sum(sizes)


def older(folder: Path, drop: bool = True) -> Callable[[Callable[[dict[str, Any], int], None]], None]:
    """Return a function that edits every file of DeepSpeed in a folder; without its own account of the cuts."""

    def edit(change: Callable[[dict[str, Any], int], None]) -> None:
        for rank, path in enumerate(sorted((folder / "converted").glob("mp_rank_*"))):
            state = torch.load(path, weights_only=True)
            if drop:
                del state["universal_checkpoint_info"]
            change(state, rank)
            torch.save(state, path)

    return edit


def test_files_that_do_not_say_how_they_are_cut_are_joined_by_shapes(tmp_path: Path) -> None:
    model, base = saved(tmp_path / "hf", "qwen2"), tmp_path / "hf"
    convert(base, tmp_path / "ds", Conversion("deepspeed", tp_size=3))
    older(tmp_path / "ds")(lambda state, rank: None)
    convert(tmp_path / "ds", tmp_path / "back", Conversion("huggingface", model=base))
    assert same(model, tmp_path / "back")
    with pytest.raises(CheckpointError, match="give the model's directory as --model"):
        convert(tmp_path / "ds", tmp_path / "none", Conversion("huggingface"))
    fused = saved(tmp_path / "phi", "phi3")
    shapes = {name: TensorCut(tuple(value.shape)) for name, value in fused.named_parameters()}
    name = "model.layers.0.self_attn.qkv_proj.weight"
    shapes[name] = TensorCut((64, 32), 0, (((0, 16), (32, 8), (48, 8)), ((16, 16), (40, 8), (56, 8))))
    (tmp_path / "fused" / "converted").mkdir(parents=True)
    (tmp_path / "fused" / "latest").write_text("converted")
    for rank in range(2):
        module = {key: value.detach() for key, value in fused.state_dict().items()}
        module[name] = torch.cat([module[name].narrow(0, *piece) for piece in shapes[name].pieces[rank]])
        state = {"module": module, "universal_checkpoint_info": written_cuts(shapes, 2)}
        torch.save(state, tmp_path / "fused" / "converted" / f"mp_rank_{rank:02d}_model_states.pt")
    convert(tmp_path / "fused", tmp_path / "whole", Conversion("huggingface", model=tmp_path / "phi"))
    assert same(fused, tmp_path / "whole")
    older(tmp_path / "fused")(lambda state, rank: None)
    with pytest.raises(CheckpointError, match=r"qkv_proj.* in several ways or none"):
        convert(tmp_path / "fused", tmp_path / "none", Conversion("huggingface", model=tmp_path / "phi"))


class Malice:
    """An object whose pickle would run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


NORM, GATE = "model.norm.weight", "model.layers.0.mlp.gate_proj.weight"


def hostile(folder: Path, marker: Path) -> Iterator[tuple[str, Callable[[], None], str]]:
    """Yield damages to a folder of two ranks: a name, the damage, and a part of the error."""
    second = folder / "converted" / "mp_rank_01_model_states.pt"
    edit = older(folder, drop=False)

    def cut(change: Callable[[Any], None]) -> Callable[[], None]:
        key = f"^{GATE.replace('.', chr(92) + '.')}$"
        return lambda: edit(lambda s, r: change(s["universal_checkpoint_info"]["affine_map"]["params"][key]))

    def ranks(change: Callable[[dict[str, Any], int], None]) -> Callable[[], None]:
        return lambda: edit(change)

    def piece(**values: Any) -> Callable[[], None]:
        return cut(lambda entry: entry["ranks"][0]["pieces"][0].update(values))

    yield "command", lambda: second.write_bytes(pickle.dumps({"module": Malice(marker)})), "can't be read"
    yield "zip", lambda: torch.save({"module": {}, "client": Malice(marker)}, second), "more than tensors"
    yield "object", lambda: torch.save({"client": collections.deque()}, second), "more than tensors"
    yield "truncated", lambda: os.truncate(second, second.stat().st_size // 2), "can't be read"
    yield "empty", lambda: os.truncate(second, 0), "can't be read"
    yield "list", lambda: torch.save([1], second), "holds a list"
    yield "pipeline", lambda: torch.save({"module": None}, second), "no module's state dict"
    yield "link", lambda: (second.rename(folder / "x"), second.symlink_to(folder / "x"))[0], "can't be opened"  # type: ignore[func-returns-value]
    yield "number", ranks(lambda s, r: s["module"].update({NORM: 3})), "is no dense tensor"
    yield "sparse", ranks(lambda s, r: s["module"].update({NORM: torch.eye(2).to_sparse()})), "is no dense tensor"
    yield "meta", ranks(lambda s, r: s["module"].update({NORM: torch.empty(32, device="meta")})), "norm"
    yield "missing", lambda: (folder / "converted" / "mp_rank_00_model_states.pt").unlink(), "one is missing"
    yield "names", ranks(lambda s, r: s["module"].pop(NORM) if r else None), "other tensors than"
    yield "shape", ranks(lambda s, r: s["module"].update({GATE: torch.zeros(3, 32)})), "must be [24, 32]"
    yield "dtype", ranks(lambda s, r: s["module"].update({NORM: torch.ones(32).half()}) if r else None), "float16"
    yield "values", ranks(lambda s, r: s["module"][NORM].fill_(r)), "the ranks have different values"
    yield "world", ranks(lambda s, r: s.update(mp_world_size=4)), "is of 4 ranks"
    yield "version", ranks(lambda s, r: s["universal_checkpoint_info"]["affine_map"].update(version=2)), "version 2"
    yield "no map", ranks(lambda s, r: s.update(universal_checkpoint_info=7)), "can't be read"
    yield "huge", cut(lambda entry: entry.update(logical_shape=[1 << 62, 32])), "do not"
    yield "negative", cut(lambda entry: entry.update(logical_shape=[-48, 32])), "is no shape"
    yield "outside", piece(source=[48 * 32, [32, 1]]), "do not cover it"
    yield "inside a row", piece(source=[5, [32, 1]]), "begins inside of a row"
    yield "strides", piece(source=[0, [1, 48]]), "is no box"
    yield "gap", piece(dest=[32, [32, 1]]), "leave a gap"
    yield "scale", piece(scale=0.5), "divided by a number"
    yield "two dims", piece(shape=[24, 16]), "only one is supported"
    yield "text", piece(shape="24"), "can't be read"
    yield "ranks", cut(lambda entry: entry["ranks"].pop(1)), "and there are 2 files"
    yield "zero 3", lambda: _as_zero3(folder / "converted"), "zero_to_fp32.py"


def _as_zero3(folder: Path) -> None:
    for path in list(folder.iterdir()):
        path.rename(folder / f"zero_pp_rank_0_{path.name}")


def test_hostile_files_of_deepspeed_are_one_line_each(tmp_path: Path) -> None:
    saved(tmp_path / "hf")
    marker, source = tmp_path / "marker", tmp_path / "ds"
    count = 0
    for index in range(len(list(hostile(source, marker)))):
        folder = tmp_path / f"ds{index}"
        convert(tmp_path / "hf", folder, Conversion("deepspeed", tp_size=2))
        name, damage, text = list(hostile(folder, marker))[index]
        damage()
        with pytest.raises(CheckpointError) as raised:
            convert(folder, tmp_path / "out", Conversion("huggingface"))
        message = str(raised.value)
        assert text in message, f"{name}: {message}"
        assert "\n" not in message, name
        assert len(message) < 700, name
        count += 1
    assert count == 30
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_options_that_make_no_sense_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "hf")
    saved(tmp_path / "phi", "phi3")
    saved(tmp_path / "other", hidden_size=64)
    convert(tmp_path / "hf", tmp_path / "ours", Conversion("tpinit"))
    to = {kind: ("--to", kind) for kind in ("tpinit", "huggingface", "deepspeed")}
    for text, arguments in {
        "has the layout of huggingface already": ("hf", *to["huggingface"]),
        "has the layout of tpinit already": ("ours", *to["tpinit"]),
        "in a checkpoint of tpinit alone": ("hf", *to["tpinit"], "--masters"),
        "tpinit's fits any": ("hf", *to["tpinit"], "--tp-size", 2),
        "give either the size": ("hf", *to["deepspeed"]),
        "give its directory as the model": ("ours", *to["deepspeed"], "--tp-size", 2),
        "refuses the tp_plan of a Phi3ForCausalLM, for rowwise_split_input": ("phi", *to["deepspeed"], "--tp-size", 2),
        "not one of a LlamaForCausalLM: lm_head.weight has shape [64, 32] in it, and [64, 64]": (
            *("ours", *to["huggingface"]), "--model", tmp_path / "other",
        ),
        "is no folder": ("nothing", *to["tpinit"]),
        "has no config.json": ("ours", *to["huggingface"], "--model", tmp_path),
        "that names a checkpoint": ("", *to["tpinit"]),
    }.items():  # fmt: skip
        source, *options = arguments
        assert command(tmp_path / str(source), tmp_path / "out", *options) == 1
        assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert command(tmp_path / "hf", tmp_path / "ours", "--to", "tpinit") == 1
    assert "is not an empty folder" in capsys.readouterr().err
    with pytest.raises(LoadError):
        convert(tmp_path / "hf", tmp_path / "out", Conversion("tpinit", model=tmp_path / "ours"))


def test_a_described_cut_reads_as_it_was_written() -> None:
    cuts = {
        "whole": TensorCut((3, 4)),
        "number": TensorCut(()),
        "rows": TensorCut((5, 4), 0, (((0, 3),), ((3, 2),))),
        "columns": TensorCut((5, 4), 1, (((0, 3),), ((3, 1),))),
        "fused": TensorCut((8, 2), 0, (((0, 2), (4, 2)), ((2, 2), (6, 2)))),
        "shared": TensorCut((6, 2), 0, (((0, 2), (4, 2)), ((2, 2), (4, 2)))),
        "none": TensorCut((2, 2), 0, (((0, 2),), ())),
    }
    assert read_cuts(written_cuts(cuts, 2), cuts, 2) == cuts
