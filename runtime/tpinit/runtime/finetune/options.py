"""What a run of fine-tuning was asked for: the options of `tpinit train --model`, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["TuneOptions"]

DEFAULT_LR = 5e-5  # that of transformers' Trainer


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """The options, equal on all ranks.

    `config` is a DeepSpeed config as plain data, with the decision in its section. `steps` are updates and win over
    `epochs`, passes over the data. `length` is in tokens; None means that of the model, at most 1024. `lr`, `micro` and
    `warmup` are for what the config leaves out or calls "auto". `save_every` and `log_every` are in updates; 0 saves at
    the end only. `fresh` removes what an earlier run left in `output`, `resume` demands a checkpoint there.
    """

    model: Path
    data: Path
    output: Path
    config: dict[str, object]
    steps: int | None = None
    epochs: int = 1
    length: int | None = None
    pack: bool = False
    everything: bool = False
    lr: float | None = None
    warmup: int | None = None
    micro: int | None = None
    seed: int = 0
    save_every: int = 100
    keep_last: int = 2
    log_every: int = 10
    resume: bool = False
    fresh: bool = False
    tensorboard: bool = False
    sequence_parallel: bool = False
