"""`tpinit train --model`: what it trains is what plain transformers trains, also when it was interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tpinit.cli.train_launch import _Ranks
from tpinit.cli.train_tune import judge_losses

from support.tuning import write_jsonl, write_tiny

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("tp_size", [2, 1])
def test_an_interrupted_run_ends_as_one_that_was_not(world2: Any, tmp_path: Path, tp_size: int) -> None:
    found = world2.run("scenarios.finetune:runs", timeout=150, folder=str(tmp_path), tp_size=tp_size)[0]
    assert found["codes"] == (0, 128 + signal.SIGTERM, 0)
    assert found["unfinished"] == ["checkpoints", "metrics.jsonl"]
    assert len(found["losses"][0]) == 6
    assert found["losses"][0] == found["losses"][1]
    assert found["tokens"][0] == found["tokens"][1]
    assert found["different"] == []
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(found["files"])
    assert found["checkpoints"] == ["global_step3", "global_step6", "latest"]
    plain = found["plain"]
    assert (plain["new tokens"], plain["template"]) == (24, True)
    assert plain["moved"] > 1e-3
    if tp_size == 2:  # two data-parallel ranks take other micro batches
        assert found["losses"][0] == pytest.approx(plain["losses"], rel=1e-5)
        assert plain["logits"] < 1e-4
        assert plain["text"] == plain["plain text"]
        for errors in world2.run("scenarios.finetune:refusals", folder=str(tmp_path)):
            assert len(errors) == 3
            assert re.match("CheckpointError: .* is of a run over other data: seed differ", errors[0])
            assert "AgreementError: the ranks read different data" in errors[1]
            assert re.match(r"CheckpointError: .*metrics\.jsonl could not be written: .*[Dd]irectory", errors[2])


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tpinit.cli.main", "train", *map(str, arguments)]


def environment(folder: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return {**inherited, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}


def test_sizes_are_compared_in_one_picture(tmp_path: Path) -> None:
    model, data = write_tiny(tmp_path)
    output = tmp_path / "runs"
    words = command(
        *("--model", model, "--data", data, "--output", output, "--compare-tp", "1,2", "--steps", 2, "--pack"),
        *("--length", 32, "--lr", "1e-2"),
    )
    done = subprocess.run(words, env=environment(tmp_path), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "equal: over 2 updates the losses of tp 1, 2 differ by at most" in done.stdout
    assert done.stdout.count("step 2/2  loss") == 2
    assert (output / "loss.svg").read_text().count("<title>") == 2
    pages = [json.loads(line) for line in (output / "tp2" / "metrics.jsonl").read_text().splitlines()]
    assert [page["tokens"] for page in pages] == [32, 32]
    keys = {"step", "epoch", "loss", "grad_norm", "lr", "tokens", "seconds", "tokens_per_second", "memory_bytes"}
    assert set(pages[0]) == keys


@pytest.mark.parametrize("losses", [[4.0, 3.0], [4.0]])
def test_sizes_that_differ_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str], losses: list[float]) -> None:
    for name, values in (("tp1", [4.0, 3.1]), ("tp2", losses)):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "metrics.jsonl", *({"step": i, "loss": loss} for i, loss in enumerate(values)))
    assert judge_losses(tmp_path, [1, 2], 1e-3) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_a_signal_to_the_launcher_saves_and_leaves_nothing(tmp_path: Path) -> None:
    model, data = write_tiny(tmp_path)
    output, temporary = tmp_path / "run", tmp_path / "temporary"
    temporary.mkdir()
    words = command("--model", model, "--data", data, "--output", output, "--steps", 100000, "--tp-size", 2)
    process = subprocess.Popen(
        words, env=environment(temporary), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step"):
                break
        ranks = children(process.pid)
        assert len(ranks) == 2
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM, "".join(lines)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert "the same command goes on from there" in rest
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists()]
    assert (output / "checkpoints" / "latest").exists()
    assert not [one.name for one in temporary.iterdir() if not one.name.startswith("torchinductor")]


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ranks_of(*programs: str) -> _Ranks:
    ranks = _Ranks()
    for program in programs:
        words = [sys.executable, "-c", f"import os, signal, sys, time\n{program}"]
        ranks.processes.append(subprocess.Popen(words, start_new_session=True))
    return ranks


@pytest.mark.parametrize(
    ("programs", "code", "words"),
    [
        (["pass", "pass"], 0, ""),
        (["sys.exit(2)", "sys.exit(1)"], 2, ""),
        (["pass", "sys.exit(7)"], 1, ""),
        (["time.sleep(60)", "os.kill(os.getpid(), signal.SIGKILL)"], 1, "rank 1 was ended by SIGKILL"),
    ],
)
def test_ranks_that_fail_end_the_others(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], programs: list[str], code: int, words: str
) -> None:
    monkeypatch.setattr("tpinit.cli.train_launch._WAIT", 0.2)
    ranks = ranks_of(*programs)
    with ranks:
        assert ranks.wait() == code
    assert all(process.returncode is not None for process in ranks.processes)
    assert words in capfd.readouterr().err


def test_a_second_signal_kills_ranks_that_go_on() -> None:
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('x', flush=True)\ntime.sleep(60)"
    ranks = ranks_of(stubborn, stubborn)
    time.sleep(1)  # a rank that is not stubborn yet ends at the first signal: the exit code is the same
    with ranks:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert ranks.wait() == 128 + signal.SIGINT
    assert all(process.returncode == -signal.SIGKILL for process in ranks.processes)
