"""The folder of a run: the model at the end, `checkpoints`, and `metrics.jsonl`."""

from __future__ import annotations

import shutil
from pathlib import Path

from tpinit.reference.errors import TpinitError
from tpinit.runtime.checkpoint.folders import read_latest
from tpinit.runtime.finetune.metrics import FILE

__all__ = ["CHECKPOINTS", "check_output", "clear_output", "has_checkpoint"]

CHECKPOINTS = "checkpoints"


def check_output(output: Path, model: Path, *, resume: bool, fresh: bool) -> None:
    """Raise TpinitError for a folder that a run must not write into, or that lacks what `resume` demands."""
    if output.exists() and not output.is_dir():
        raise TpinitError(f"--output {output} is a file: give a folder")
    if output.exists() and model.exists() and output.resolve() == model.resolve():
        raise TpinitError(f"--output {output} is the model's own directory: give a new one")
    if resume and not has_checkpoint(output):
        raise TpinitError(f"--resume: {output / CHECKPOINTS} has no checkpoint; leave --resume out to begin")
    found = sorted(one.name for one in output.iterdir()) if output.is_dir() else []
    if found and not _is_run(output):
        raise TpinitError(f"--output {output} holds files of something else ({found[0]}): give a new or empty folder")
    if has_checkpoint(output) and fresh and resume:
        raise TpinitError("--resume goes on with a run and --fresh begins anew: give one of them")


def has_checkpoint(output: Path) -> bool:
    """Return whether a run of this folder can go on. Raises CheckpointError if its `latest` can't be read."""
    return read_latest(output / CHECKPOINTS) is not None


def clear_output(output: Path, fresh: bool) -> None:
    """Make the folder; with `fresh` without the checkpoints and metrics of an earlier run."""
    output.mkdir(parents=True, exist_ok=True)
    if fresh:
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
        (output / FILE).unlink(missing_ok=True)


def _is_run(output: Path) -> bool:
    return (output / FILE).is_file() or (output / CHECKPOINTS).is_dir()
