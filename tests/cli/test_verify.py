"""`tpinit verify`: the verdict on a transformers config, in words and as data, and its errors."""

import json

import pytest
from tpinit.cli import verify as verify_module
from tpinit.cli.main import main
from tpinit.step.graph import Op, OpPlace
from tpinit.step.verdict import StepResult, StepVerdict

pytest.importorskip("torch")
pytest.importorskip("transformers")

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1537,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 4097,
    "max_position_embeddings": 131072,
    "bos_token_id": 4000,
    "eos_token_id": 4001,
    "tie_word_embeddings": True,
}
CONFIG = {"gradient_clipping": 1.0, "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}}


def verify(tpinit, *options, model=LLAMA, config=CONFIG):
    tpinit.write(json.dumps(model), "config.json")
    tpinit.write(json.dumps(config))
    return tpinit("verify", "--model", tpinit.cwd, "--config", "ds.json", *options)


def test_a_wide_model_is_proven_by_a_small_one_that_is_sharded_alike(tpinit):
    result = verify(tpinit, "--tp-size", "2", "--layers", "1", "--json")
    assert result.returncode == 0, result.stderr.decode()
    page = json.loads(result.stdout)
    assert page["proven"] is True
    assert page["stuck"] == []
    assert page["results"]["all"] == page["results"]["proven"] == 2 + 4 * 11
    groups = {row["name"]: row for row in page["groups"]}
    kinds = {"gradient", "update", "state exp_avg", "state exp_avg_sq"}
    assert set(groups["model.layers.*.self_attn.q_proj.weight"]["proven"]) == kinds
    assert groups["norm"]["proven"] == {"value": True}
    assert any("1 layers" in one for one in page["assumptions"])
    assert page["operations"] > 300
    assert page["seconds"] > 0


def test_a_step_that_is_not_proven_ends_with_1_and_names_each_place_once(monkeypatch, capsys):
    # Any rule may be added, so no model stays stuck for ever: the verdict is made here.
    op = Op("aten.sort.default", (), (), OpPlace("model.layers.1.mlp", "pkg/modeling_x.py:12", "backward"))
    results = [StepResult(f"grad layers.{layer}.weight", "no rule" if layer else "", op) for layer in range(3)]
    results += [StepResult(f"state exp_avg:layers.{layer}.weight", "") for layer in range(3)]
    verdict = StepVerdict((*results, StepResult("loss", "each rank has an addend of it")), 7, ("reals",))
    monkeypatch.setattr(verify_module, "_verify", lambda _: verdict)
    assert main(["verify", "--model", "config.json", "--tp-size", "2", "--json"]) == 1
    page = json.loads(capsys.readouterr().out)
    assert page["results"] == {"proven": 4, "all": 7}
    assert page["groups"][0] == {
        "name": "layers.*.weight",
        "parameters": 3,
        "proven": {"gradient": False, "state exp_avg": True},
    }
    assert [row["results"] for row in page["stuck"]] == [2, 1]
    assert main(["verify", "--model", "config.json", "--tp-size", "2"]) == 1
    text = capsys.readouterr().out
    assert text.startswith("NOT PROVEN: 4 of 7 results")
    where = "aten.sort.default at pkg/modeling_x.py:12 in model.layers.1.mlp (backward): no rule; 2 results need it"
    assert text.count(where) == 1
    assert "  loss: each rank has an addend of it; 1 results need it\n" in text


@pytest.mark.parametrize(
    ("options", "config", "words"),
    [
        (("--tp-size", "2"), {"bf16": {"enabled": True}}, "parameters in bf16"),
        (("--tp-size", "2"), {"tensor_parallel": {"autotp_size": 1}}, "groups of 1"),
    ],
)
def test_what_is_refused_ends_with_1(tpinit, options, config, words):
    result = verify(tpinit, *options, config=config)
    error = result.stderr.decode()
    assert result.returncode == 1
    assert result.stdout == b""
    assert error.startswith("tpinit: error: ")
    assert words in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "nowhere", "--tp-size", "2"), ("nowhere", "config.json")),
        (("--model", "config.json"), ("--tp-size",)),
        (("--model", "config.json", "--tp-size", "0"), ("--tp-size",)),
        (("--model", "config.json", "--tp-size", "2", "--config", "nowhere.json"), ("nowhere.json",)),
        (("--model", "config.json", "--tp-size", "2", "--attention", "flash"), ("--attention",)),
    ],
)
def test_malformed_questions(tpinit, refused, arguments, words):
    tpinit.write(json.dumps(LLAMA), "config.json")
    refused(tpinit("verify", *arguments), *words)
