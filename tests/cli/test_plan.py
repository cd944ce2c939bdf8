"""`tpinit plan`: any model over any world, in seconds, without a rank."""

import html.parser
import itertools
import json
import time

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
SMALL = {
    **LLAMA,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "vocab_size": 101,
    "num_hidden_layers": 3,
    "max_position_embeddings": 32,
}
CONFIG = {
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
    "tensor_parallel": {"autotp_size": 2, "dtype": "fp32"},
}


def planned(tpinit, *more, model=SMALL, config=CONFIG):
    tpinit.write(json.dumps(model), "config.json")
    tpinit.write(json.dumps(config))
    result = tpinit("plan", "--model", tpinit.cwd, "--config", "ds.json", *more)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode()


def test_the_largest_model_over_the_largest_world_takes_seconds(tpinit):
    start = time.monotonic()
    text = planned(
        tpinit,
        "--tp-size",
        "8",
        "--world",
        "16384",
        "--json",
        model=LLAMA,
        config={**CONFIG, "tensor_parallel": {"autotp_size": 8}},
    )
    assert time.monotonic() - start < 60  # planning each of its layers takes minutes
    page = json.loads(text)
    assert page["model"]["parameters"] == 405_853_388_800
    assert page["ranks"]["dp_size"] == 2048
    assert page["ranks"]["tp_groups"][-1]["ranks"] == list(range(16376, 16384))
    assert page["collectives"]["per_micro_batch"]["calls"] == 4 * 126 + 3
    query = next(one for one in page["parameters"] if "q_proj" in one["name"])
    assert query["name"] == "model.layers.{0-125}.self_attn.q_proj.weight"
    assert query["count"] == 126
    assert query["local_shapes"] == [[2048, 16384]] * 8
    held = sum(one["count"] * one["local_bytes"][0] for one in page["parameters"])
    memory = page["memory"][0]
    assert memory["parameters"] == held == memory["masters"] // 2 == memory["optimizer"] // 4


def test_slices_of_all_ranks_make_the_whole(tpinit):
    page = json.loads(planned(tpinit, "--world", "4", "--json"))
    assert page["decision"]["row"] == 3
    for one in page["parameters"]:
        if one["dim"] is not None:
            held = sorted(piece for pieces in one["slices"] for piece in pieces)
            assert held[0][0] == 0
            assert all(first[0] + first[1] == second[0] for first, second in itertools.pairwise(held))
            assert sum(held[-1]) == one["shape"][one["dim"]]
    assert sum(one["count"] for one in page["parameters"]) == 3 + 9 * 3
    tokens = 2 * 32
    entry = next(one for one in page["collectives"]["each"] if one["module"].endswith("q_proj"))
    assert entry["largest_bytes"] == tokens * 64 * 4
    assert entry["calls"] == 3


def test_the_words_name_what_the_data_has(tpinit):
    text = planned(tpinit, "--world", "4")
    for words in ("Row 3 of 12", "2 TP groups of 2", "model.layers.{0-2}.mlp.up_proj.weight", "row, dim 1", "tp rank"):
        assert words in text
    assert "15 collectives" in text


def test_zero_shares_the_states_of_the_optimizer(tpinit):
    pages = {}
    for stage in (0, 1):
        config = {**CONFIG, "zero_optimization": {"stage": stage}}
        pages[stage] = json.loads(planned(tpinit, "--world", "8", "--json", config=config))
    first, second = (pages[stage]["memory"][0] for stage in (0, 1))
    assert second["optimizer"] == first["optimizer"] / 4
    assert second["total"] == first["total"] - first["optimizer"] * 3 / 4
    assert not any(one["kind"] == "broadcast" for one in pages[0]["collectives"]["each"])
    (sent,) = [one for one in pages[1]["collectives"]["each"] if one["kind"] == "broadcast"]
    assert sent["group"] == "dp"


def test_batch_sizes_that_deepspeed_counts_otherwise_are_among_the_warnings(tpinit):
    config = {**CONFIG, "train_batch_size": 16}
    page = json.loads(planned(tpinit, "--world", "4", "--json", config=config))
    assert page["batch"]["accumulation"] == 4
    (note,) = [note for note in page["notes"] if "batch sizes" in note]
    assert "16 = 2 x 2 x 4" in note


def test_fewer_layers_on_request(tpinit):
    page = json.loads(planned(tpinit, "--world", "2", "--layers", "1", "--json"))
    assert sum(one["count"] for one in page["parameters"]) == 3 + 9


class _Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(tpinit):
    planned(tpinit, "--world", "4", "--html", "plan.html")
    text = (tpinit.cwd / "plan.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert not page.open
    assert not {"script", "link", "img"} & set(page.seen)
    assert "http" not in text
    assert page.seen.count("svg") == 12
    assert "prefers-color-scheme: dark" in text


def test_what_the_contract_refuses_ends_with_1(tpinit):
    tpinit.write(json.dumps(SMALL), "config.json")
    tpinit.write(json.dumps(CONFIG))
    result = tpinit("plan", "--model", tpinit.cwd, "--config", "ds.json", "--world", "3")
    assert result.returncode == 1
    assert b"tpinit: error: " in result.stderr


def test_what_the_model_does_not_allow_ends_with_1(tpinit):
    tpinit.write(json.dumps(SMALL), "config.json")
    tpinit.write(json.dumps({**CONFIG, "tensor_parallel": {"autotp_size": 128}}))
    result = tpinit("plan", "--model", tpinit.cwd, "--config", "ds.json", "--world", "128")
    assert result.returncode == 1
    assert b"128 ranks" in result.stderr
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "nowhere", "--world", "2", "--config", "ds.json"), ("nowhere", "config.json")),
        (("--model", "ds.json", "--world", "2", "--config", "ds.json"), ("ds.json",)),
        (("--model", "config.json"), ("--world",)),
        (("--model", "config.json", "--world", "0"), ("--world",)),
        (("--model", "config.json", "--world", "2", "--dtype", "bf16"), ("--tp-size",)),
        (("--model", "config.json", "--world", "2", "--config", "nowhere.json"), ("nowhere.json",)),
        (("--model", "config.json", "--world", "2", "--config", "ds.json", "--html", "a/b/c.html"), ("--html",)),
    ],
)
def test_malformed_questions(tpinit, refused, arguments, words):
    tpinit.write(json.dumps(SMALL), "config.json")
    tpinit.write(json.dumps(CONFIG))
    refused(tpinit("plan", *arguments), *words)
