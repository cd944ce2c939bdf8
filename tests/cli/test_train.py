"""`tpinit train`: what is refused before a rank starts, and what its help and its page say."""

from __future__ import annotations

import json
import re

import pytest
from tpinit.cli.main import main
from tpinit.cli.train import _OPTIONS, _TUNING, _command_line, add_arguments
from tpinit.cli.train_tune import processes_of, tune_options

from support.paths import ROOT
from support.tuning import write_jsonl


@pytest.fixture
def files(tmp_path):
    """A folder that looks like a model, good lines, bad lines, and configs."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    write_jsonl(tmp_path / "good", {"text": "a"})
    write_jsonl(tmp_path / "bad", {"text": "a"}, {"txt": "a"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thing").touch()
    section = {"tensor_parallel": {"autotp_size": 2}, "bf16": {"enabled": True}}
    (tmp_path / "tp2.json").write_text(json.dumps(section))
    (tmp_path / "plain.json").write_text('{"fp16": {"enabled": true}}')
    (tmp_path / "broken.json").write_text("{")
    return tmp_path


GOOD = ("--model", "model", "--data", "good", "--output", "out")
WRONG = [
    (("--pack",), 2, "--pack needs --model and --data and --output"),
    (("--model", "model"), 2, "--model needs --data and --output"),
    ((*GOOD[2:], "--model", "other"), 2, "other has no config.json"),
    ((*GOOD[:2], *GOOD[4:], "--data", "bad"), 2, "line 2: has none of the keys"),
    ((*GOOD[:2], *GOOD[4:], "--data", "none"), 2, "none can't be read"),
    ((*GOOD[:4], "--output", "other"), 1, "holds files of something else (thing)"),
    ((*GOOD[:4], "--output", "model"), 1, "the model's own directory"),
    ((*GOOD, "--resume"), 1, "has no checkpoint"),
    ((*GOOD, "--resume", "--fresh"), 2, "--resume goes on with a run, and --fresh begins anew"),
    ((*GOOD, "--config", "broken.json"), 2, "broken.json"),
    ((*GOOD, "--config", "tp2.json", "--tp-size", "4", "--nproc", "4"), 1, "SIZE_MISMATCH"),
    ((*GOOD, "--config", "tp2.json", "--nproc", "3"), 1, "SIZE_NOT_DIVIDING_WORLD"),
    ((*GOOD, "--config", "plain.json"), 2, "the config has no tensor_parallel section. fix: give --tp-size"),
    ((*GOOD, "--compare-tp", "1,2", "--nproc", "2"), 2, "--compare-tp sets --nproc"),
    ((*GOOD, "--compare-tp", "2,2"), 2, "is not a list of two or more different sizes"),
    ((*GOOD, "--compare-tp", "1,2", "--config", "tp2.json"), 1, "SIZE_MISMATCH"),
    ((*GOOD, "--lr", "0"), 2, "is not a number above 0"),
    ((*GOOD, "--loss-on", "prompts"), 2, "invalid choice"),
]


@pytest.mark.parametrize(("words", "code", "text"), WRONG, ids=lambda one: one if isinstance(one, str) else None)
def test_what_is_refused_before_a_rank_starts(files, monkeypatch, capsys, words, code, text):
    monkeypatch.chdir(files)
    monkeypatch.setattr("tpinit.cli.train.launch", lambda *_: pytest.fail("ranks were started"))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    try:
        status = main(["train", *words])
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert (status, error.count("tpinit: error:")) == (code, 1), error
    assert text in error


def parsed(*words):
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "ranks"),
    [((), 2), (("--tp-size", "4"), 4), (("--config", "tp2.json"), 2), (("--config", "tp2.json", "--nproc", "4"), 4)],
)
def test_how_many_ranks_start(files, monkeypatch, words, ranks):
    monkeypatch.chdir(files)
    assert processes_of(parsed(*GOOD, *words)) == ranks


def test_a_rank_gets_the_options_of_the_command(files, monkeypatch):
    monkeypatch.chdir(files)
    words = (
        *GOOD,
        "--config",
        "tp2.json",
        "--tp-size",
        "2",
        "--pack",
        "--loss-on",
        "all",
        "--warmup",
        "0",
        "--nproc",
        "4",
    )
    first = parsed(*words)
    again = parsed(*_command_line(first))
    assert tune_options(again, 4) == tune_options(first, 4)
    assert tune_options(first, 4).config["tensor_parallel"] == {"autotp_size": 2, "dtype": "bf16"}
    assert (first.pack, again.warmup, again.nproc) == (True, 0, None)


def test_a_size_without_a_section_makes_one(files, monkeypatch):
    monkeypatch.chdir(files)
    config = tune_options(parsed(*GOOD, "--config", "plain.json", "--tp-size", "2"), 4).config
    assert config["tensor_parallel"] == {"autotp_size": 2, "dtype": "fp16"}
    assert tune_options(parsed(*GOOD), 4).config["tensor_parallel"] == {"autotp_size": 4, "dtype": "fp32"}


def test_the_help_and_the_page_have_every_option(capsys):
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    parsed_help = main_help(capsys)
    assert [option for option in (*_OPTIONS, *_TUNING) if option not in parsed_help] == []
    named = set(re.findall(r"--[a-z][a-z-]+", page))
    assert named - {*_OPTIONS, *_TUNING, "--help", "--no-deps"} == set()
    assert {*_TUNING} - named == {"--sequence-parallel"}


def main_help(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    return capsys.readouterr().out
