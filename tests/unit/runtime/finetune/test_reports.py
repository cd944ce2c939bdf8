"""What a run shows and leaves: metrics, the bar, the picture, its folder, the values that it filled in."""

from __future__ import annotations

import io
import math
import resource
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tpinit.reference.errors import ConfigError, TpinitError
from tpinit.runtime.finetune.config_values import completed_config
from tpinit.runtime.finetune.loss_chart import draw_losses, largest_difference
from tpinit.runtime.finetune.metrics import FILE, MetricsFile, read_metrics
from tpinit.runtime.finetune.options import TuneOptions
from tpinit.runtime.finetune.progress import Progress, clock, short
from tpinit.runtime.finetune.run_folder import CHECKPOINTS, check_output


class Terminal(io.StringIO):
    def isatty(self):
        return True


def page(step, **values):
    return {"step": step, "loss": 2.5, "seconds": 2.0, "tokens_per_second": 1234.0, "memory_bytes": 2**30, **values}


def test_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    progress = Progress(20, 2, 5, stream)
    for step in range(3, 21):
        progress.update(page(step))
    progress.end()
    lines = stream.getvalue().splitlines()
    assert [line.split("/")[0] for line in lines] == ["step  3", "step  5", "step 10", "step 15", "step 20"]
    assert lines[0] == "step  3/20  loss 2.5000  1.2k tokens/s  1.00 GiB  ETA 0:34"
    assert "\r" not in stream.getvalue()


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    progress = Progress(2, 0, 5, stream)
    progress.update(page(1))
    progress.say("saved")
    progress.update(page(2))
    progress.end()
    assert stream.getvalue().split("\r")[1].startswith("[##########..........] step 1/2  loss 2.5000")
    assert "saved\n" in stream.getvalue()
    assert stream.getvalue().endswith("ETA 0:00\n")
    monkeypatch.setenv("COLUMNS", "72")  # the numbers are whole, and the bar is shorter
    narrow = Terminal()
    Progress(2, 0, 5, narrow).update(page(1))
    line = narrow.getvalue().removeprefix("\r")
    assert (len(line), line.endswith("ETA 0:02")) == (71, True)
    assert line.startswith("[#")
    assert (clock(59.6), clock(3661), short(950), short(4.51e6)) == ("1:00", "1:01:01", "950", "4.5M")


def test_metrics_after_the_last_checkpoint_are_dropped(tmp_path):
    file = MetricsFile(tmp_path, 0)
    for step in (1, 2, 3):
        file.add(page(step))
    file.close()
    with (tmp_path / FILE).open("a") as broken:
        broken.write('{"step": 4, "lo')
    MetricsFile(tmp_path, 2).close()
    assert [one["step"] for one in read_metrics(tmp_path)] == [1, 2]


def test_an_update_that_does_not_fit_on_the_disk_is_an_error(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path, 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, before[1]))  # bytes: two lines and a part of one
    try:
        for step in (1, 2):
            file.add({"step": step})
        with pytest.raises(OSError, match="File too large"):
            file.add({"step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        file.close()
    assert (tmp_path / FILE).stat().st_size == 30
    assert [page["step"] for page in read_metrics(tmp_path)] == [1, 2]


def test_the_picture_has_every_curve_and_point(tmp_path):
    curves = {"tp 1": [(1, 3.0), (2, 2.0), (3, 1.5)], "tp 2 & <4>": [(1, 3.0), (2, 2.002), (3, 1.5)]}
    svg = ElementTree.fromstring(draw_losses(curves, 'A "title" & more', "note"))
    lines = [one for one in svg.iter() if one.tag.endswith("polyline") and len(list(one))]
    assert [len(one.get("points").split()) for one in lines] == [3, 3]
    assert [one[0].text for one in lines] == list(curves)
    assert all(
        0 <= float(value) <= 800 for one in lines for point in one.get("points").split() for value in point.split(",")
    )
    assert ElementTree.fromstring(draw_losses({"one": [(1, 2.0), (2, math.nan)]}, "t")) is not None
    assert ElementTree.fromstring(draw_losses({"none": []}, "t")) is not None


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ([(1, 4.0), (2, 2.0)], 0.0),
        ([(1, 4.0), (2, 2.5)], 0.25),
        ([(1, 4.0)], math.inf),
        ([(1, 4.0), (2, math.nan)], math.inf),
    ],
)
def test_differences_of_curves(other, difference):
    assert largest_difference({"a": [(1, 4.0), (2, 2.0)], "b": other}) == difference


def options(config, **values):
    return TuneOptions(Path("m"), Path("d"), Path("o"), config, **values)


def test_auto_is_filled_in():
    config, filled = completed_config(options({}), 7)
    assert config == {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "AdamW", "params": {"lr": 5e-5}}}
    assert len(filled) == 2
    assert "scheduler" not in completed_config(options({}, warmup=0), 7)[0]
    assert completed_config(options({}, warmup=3, lr=0.5), 7)[0]["scheduler"]["params"] == {
        "warmup_min_lr": 0,
        "warmup_max_lr": 0.5,
        "warmup_num_steps": 3,
        "warmup_type": "linear",
    }
    given = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
        },
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "warmup_min_lr": "auto",
                "warmup_max_lr": "auto",
                "warmup_num_steps": "auto",
                "total_num_steps": "auto",
            },
        },
    }
    config, _ = completed_config(options(given, lr=0.5, micro=3, warmup=2), 7)
    assert config["train_micro_batch_size_per_gpu"] == 3
    assert "train_batch_size" not in config
    assert config["optimizer"]["params"] == {"lr": 0.5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
    assert list(config["scheduler"]["params"].values()) == [0, 0.5, 2, 7]
    assert given["train_batch_size"] == "auto"


def test_options_that_the_config_contradicts():
    given = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 4}},
    }
    assert completed_config(options(given, lr=0.1, micro=2, warmup=4), 1)[0] == given
    with pytest.raises(ConfigError) as caught:
        completed_config(options(given, lr=0.2, micro=1, warmup=5), 1)
    assert [problem.path for problem in caught.value.problems] == [
        "optimizer.params.lr",
        "scheduler.params.warmup_num_steps",
        "train_micro_batch_size_per_gpu",
    ]


def test_folders_that_are_not_a_run_s(tmp_path):
    model, output = tmp_path / "model", tmp_path / "run"
    model.mkdir()
    check_output(output, model, resume=False, fresh=False)
    (model / "config.json").touch()
    (tmp_path / "file").touch()
    for folder, words in (
        (model, "the model's own"),
        (tmp_path, "files of something else"),
        (tmp_path / "file", "a file"),
    ):
        with pytest.raises(TpinitError, match=words):
            check_output(folder, model, resume=False, fresh=False)
    (output / CHECKPOINTS).mkdir(parents=True)
    check_output(output, model, resume=False, fresh=False)
    with pytest.raises(TpinitError, match="has no checkpoint"):
        check_output(output, model, resume=True, fresh=False)
