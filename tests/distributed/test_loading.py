"""A model loaded or drawn by slices is the one that `initialize` makes of the unsharded model."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed

# Among them: a base model's names, experts that are stored one by one, tied and fused matrices.
LOADED = (
    "llama",
    "qwen3",
    "gpt2",
    "mixtral",
    "gpt_oss",
    "dbrx",
    "llama_tied",
    "llama_uneven",
    "phi3",
    "qwen2_moe",
    "deepseek_v3",
    "bert",
)
DRAWN = ("llama", "qwen3", "gpt2", "mixtral", "gpt_oss", "llama_tied", "llama_uneven", "falcon_new", "whisper")


def assert_same(results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        for what in ("plans", "names", "weights", "buffers", "trainable", "storage", "untouched"):
            assert result[what], (rank, what)
        assert result["loss"] == 0.0, (rank, result["loss"])
        assert result["trained"] == 0.0, (rank, result["trained"])
        assert result["cut"]


@pytest.mark.parametrize("shards", ["5GB", "20KB"])
@pytest.mark.parametrize("family", LOADED)
def test_a_model_loaded_by_slices_trains_as_one_sharded_in_memory(
    world2: Any, tmp_path: Path, family: str, shards: str
) -> None:
    files = world2.run("scenarios.loading:save_checkpoint", name=family, folder=str(tmp_path), shards=shards)[0]
    assert ("model.safetensors.index.json" in files["files"]) == (shards == "20KB")
    results = world2.run("scenarios.loading:train_loaded", name=family, folder=str(tmp_path), tp=2)
    assert_same(results)
    assert all(bool(result["tied"]) == (family in ("llama_tied", "gpt2", "bert")) for result in results)
    if family == "mixtral":
        assert any("experts.3.w2" in name for name in files["names"])  # fused in the model


@pytest.mark.parametrize("tp", [2, 4])
def test_groups_of_ranks_load_the_same(world4: Any, tmp_path: Path, tp: int) -> None:
    world4.run("scenarios.loading:save_checkpoint", name="llama_uneven", folder=str(tmp_path), shards="10KB")
    assert_same(
        world4.run("scenarios.loading:train_loaded", name="llama_uneven", folder=str(tmp_path), tp=tp, adamw=True)
    )


@pytest.mark.parametrize(("stored", "dtype"), [("bfloat16", "fp32"), ("float32", "bf16"), ("bfloat16", "bf16")])
def test_weights_are_converted_to_the_dtype_of_the_decision(
    world2: Any, tmp_path: Path, stored: str, dtype: str
) -> None:
    world2.run("scenarios.loading:save_checkpoint", name="llama", folder=str(tmp_path), dtype=stored)
    assert_same(
        world2.run("scenarios.loading:train_loaded", name="llama", folder=str(tmp_path), tp=2, dtype=dtype, adamw=True)
    )


def test_the_comparison_detects_one_wrong_value(world2: Any, tmp_path: Path) -> None:
    world2.run("scenarios.loading:save_checkpoint", name="llama", folder=str(tmp_path))
    results = world2.run("scenarios.loading:train_loaded", name="llama", folder=str(tmp_path), tp=2, spoil="one number")
    assert results[0]["weights"]
    assert not results[1]["weights"]
    assert all(result["loss"] > 0 for result in results)


@pytest.mark.parametrize("family", DRAWN)
def test_random_weights_drawn_by_slices_are_those_of_the_unsharded_model(world2: Any, family: str) -> None:
    assert_same(world2.run("scenarios.loading:train_drawn", name=family, tp=2))


def test_another_seed_gives_other_weights(world2: Any) -> None:
    assert not any(
        result["weights"] for result in world2.run("scenarios.loading:train_drawn", name="llama", tp=2, other_seed=4)
    )


def test_ranks_with_different_seeds_are_refused(world2: Any) -> None:
    results = world2.run("scenarios.loading:draw_with_different_seeds")
    assert {result["type"] for result in results} == {"AgreementError"}
    assert len({result["text"] for result in results}) == 1
    assert "seed" in results[0]["fields"]
    assert all(result["collective"] for result in results)


# --- memory ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(world2: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = {name: str(tmp_path_factory.mktemp(name)) for name in ("folder", "small")}
    world2.run("scenarios.loading:save_large_checkpoint", folder=found["folder"])
    world2.run("scenarios.loading:save_checkpoint", name="llama", folder=found["small"])
    assert sum(path.stat().st_size for path in Path(found["folder"]).glob("*.safetensors")) > 100e6
    return found


@pytest.mark.parametrize("how", ["pretrained", "config"])
def test_loading_peaks_at_a_ranks_own_weights_and_one_tensor_more(
    fresh_world: Any, large: dict[str, str], how: str
) -> None:
    world = fresh_world(2)
    for result in world.run("scenarios.loading:peak_memory", how=how, **large):
        assert result["own"] > 50e6
        assert result["after"] > 0.9 * result["own"]
        assert result["peak"] <= 1.1 * result["own"] + result["largest"], result
    world.stop()


def test_the_measurement_detects_an_unsharded_model(fresh_world: Any, large: dict[str, str]) -> None:
    world = fresh_world(2)
    for result in world.run("scenarios.loading:peak_memory", how="whole", **large):
        assert result["peak"] > 1.1 * result["own"] + result["largest"], result
    world.stop()


# --- what is refused -------------------------------------------------------------------------------------


def _truncate(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-100])


def _cut_header(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:60])


def _grow(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes() + b"\0" * 8)


def _garble(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    raw = bytearray(path.read_bytes())
    raw[20:24] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(raw))


def _overlap(folder: Path) -> None:
    _rewrite(folder, lambda header: next(iter(header.values()))["data_offsets"].__setitem__(0, 4))


def _reshape(folder: Path) -> None:
    def turn(header: dict[str, Any]) -> None:
        one = header["model.layers.0.mlp.up_proj.weight"]
        one["shape"] = one["shape"][::-1]

    _rewrite(folder, turn)


def _quantize(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        one = header["model.layers.0.mlp.up_proj.weight"]
        one["dtype"], one["shape"] = "I8", [one["shape"][0], one["shape"][1] * 4]

    _rewrite(folder, change)


def _rename(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        header["model.layers.0.mlp.other.weight"] = header.pop("model.layers.0.mlp.up_proj.weight")

    _rewrite(folder, change)
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    for path in folder.glob("*.safetensors"):
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        header.pop("__metadata__", None)
        try:
            change(header)
        except KeyError:
            continue
        new = json.dumps(header).encode()
        new += b" " * (-len(new) % 8)
        path.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])


def _lose(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[-1].unlink()


def _index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors.index.json"
    page = json.loads(path.read_bytes())
    change(page)
    path.write_text(json.dumps(page))


def _promise(folder: Path) -> None:
    _index(folder, lambda page: page["weight_map"].update({"model.extra.weight": min(page["weight_map"].values())}))


def _escape(folder: Path) -> None:
    _index(folder, lambda page: page["weight_map"].update({"model.norm.weight": "../elsewhere.safetensors"}))


def _break_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{")


def _pickle(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def _empty(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()


def _settings(folder: Path, **changed: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changed}))


BROKEN: dict[str, tuple[Callable[[Path], None], bool, str]] = {
    "truncated": (_truncate, True, "it is truncated"),
    "truncated in its header": (_cut_header, True, "it is truncated"),
    "longer": (_grow, True, "longer than that"),
    "garbled header": (_garble, True, "its header is corrupted"),
    "overlapping tensors": (_overlap, False, "its header is corrupted"),
    "missing file": (_lose, True, "No such file"),
    "another shape": (_reshape, False, "model.layers.0.mlp.up_proj.weight is stored as [48, 96]"),
    "integers": (_quantize, False, "quantized"),
    "another name": (_rename, False, "the checkpoint lacks model.layers.0.mlp.up_proj.weight"),
    "a tensor that is nowhere": (_promise, True, "model.extra.weight"),
    "a file of another directory": (_escape, True, "a file of this directory"),
    "an index that is no JSON": (_break_index, True, "index.json can't be read"),
    "torch's own format": (_pickle, False, "save_pretrained(another)"),
    "nothing": (_empty, False, "neither model.safetensors nor"),
    "no config": (lambda folder: (folder / "config.json").unlink(), False, "has no config.json"),
    "a config that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), False, "can't be read"),
    "another size": (lambda folder: _settings(folder, hidden_size=96), False, "and the model has"),
    "one layer more": (lambda folder: _settings(folder, num_hidden_layers=3), False, "lacks model.layers.2."),
    "an unknown class": (lambda folder: _settings(folder, architectures=["Nonsense"]), False, "give model_class"),
    "code of its own": (lambda folder: _settings(folder, auto_map={"AutoConfig": "x.Y"}), False, "auto_map"),
    "quantized": (
        lambda folder: _settings(folder, quantization_config={"quant_method": "awq", "bits": 4}),
        False,
        "quantized weights",
    ),
}


@pytest.fixture(scope="module")
def saved_llama(world2: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    found = {}
    for many, shards in ((False, "5GB"), (True, "20KB")):
        found[many] = tmp_path_factory.mktemp("llama")
        world2.run("scenarios.loading:save_checkpoint", name="llama", folder=str(found[many]), shards=shards)
    return found


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_the_same_error_on_every_rank(
    world2: Any, saved_llama: dict[bool, Path], tmp_path: Path, case: str
) -> None:
    change, many, words = BROKEN[case]
    folder = tmp_path / "model"
    shutil.copytree(saved_llama[many], folder)
    change(folder)
    results = world2.run("scenarios.loading:load_refused", folder=str(folder))
    for result in results:
        assert result["type"] == "LoadError", result
        assert words in result["text"], result["text"]
        assert result["collective"]
        assert result["seconds"] < 20
    assert len({result["text"] for result in results}) == 1


def test_one_rank_with_a_broken_copy_stops_all(world2: Any, saved_llama: dict[bool, Path], tmp_path: Path) -> None:
    for rank in range(2):
        shutil.copytree(saved_llama[True], tmp_path / f"model{rank}")
    _truncate(tmp_path / "model1")
    results = world2.run("scenarios.loading:load_refused", folder=str(tmp_path / "modelRANK"))
    for result in results:
        assert result["type"] == "AgreementError"
        assert "rank 1: LoadError" in result["text"]
        assert "truncated" in result["text"]
        assert result["collective"]


def test_different_weights_under_equal_headers_are_detected(
    world4: Any, saved_llama: dict[bool, Path], tmp_path: Path
) -> None:
    for rank in range(4):
        shutil.copytree(saved_llama[False], tmp_path / f"model{rank}")
    path = tmp_path / "model3" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-5000] ^= 1
    path.write_bytes(bytes(raw))
    results = world4.run("scenarios.loading:load_refused", folder=str(tmp_path / "modelRANK"))
    for result in results:
        assert result["type"] == "AgreementError"
        assert "weights of" in result["text"]
        assert result["collective"]


@pytest.mark.parametrize(
    ("how", "words"), [("disk", "Input/output error"), ("short", "is shorter than it was when its header was read")]
)
def test_a_file_that_fails_while_it_is_read_stops_all(
    world2: Any, saved_llama: dict[bool, Path], how: str, words: str
) -> None:
    results = world2.run("scenarios.loading:load_failing_file", folder=str(saved_llama[True]), how=how)
    for result in results:
        assert result["type"] == "AgreementError"
        assert "rank 1: LoadError" in result["text"]
        assert words in result["text"]
        assert result["collective"]


def test_a_tied_matrix_stored_twice_with_different_values_is_refused(world2: Any, tmp_path: Path) -> None:
    world2.run("scenarios.loading:save_checkpoint", name="llama", folder=str(tmp_path))
    _settings(tmp_path, tie_word_embeddings=True)
    for result in world2.run("scenarios.loading:load_refused", folder=str(tmp_path)):
        assert result["type"] == "LoadError"
        assert "different values" in result["text"]
        assert result["collective"]


def test_a_missing_directory_is_refused(world2: Any) -> None:
    for result in world2.run("scenarios.loading:load_refused", folder="/nonexistent/model"):
        assert result["type"] == "LoadError"
        assert "is no directory" in result["text"]
