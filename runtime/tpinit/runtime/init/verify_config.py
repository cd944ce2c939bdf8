"""Verifies the training step of a transformers config, by that of a small model which is sharded alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tpinit.runtime.init.verify_step import prove_recorded, read_covered, record_step
from tpinit.runtime.recording.small_config import build_small, check_plans, small_batch, small_config
from tpinit.step.verdict import StepVerdict

__all__ = ["verify_config"]

_TOKENS = 7  # of a sample; another number than any width


def verify_config(
    model_config: Any,
    config: str | Mapping[str, Any] | None,
    tp_size: int,
    *,
    layers: int = 2,
    attention: str = "eager",
    sequence_parallel: bool = False,
) -> StepVerdict:
    """Return the verdict on a training step of a small model with the structure of a transformers config.

    The small model has `layers` layers, at least one of each kind, and the config's heads; its widths are small. That
    the wide model is sharded alike is checked. `attention` is the attention implementation. Raises what `verify_step`
    raises, LoadError for a config whose class is unknown, and RecordError if no small model stands for the wide one.
    """
    covered = read_covered(config, tp_size)
    both = small_config(model_config, tp_size, layers)
    check_plans(both, tp_size, covered.section, sequence_parallel)
    # With sequence parallelism the number of tokens is a multiple of the ranks.
    batch = small_batch(build_small(both.small, attention), 2 * tp_size if sequence_parallel else _TOKENS)
    step = record_step(
        lambda: build_small(both.small, attention), batch, config, tp_size, sequence_parallel=sequence_parallel
    )
    return prove_recorded(replace(step, notes=(*step.notes, *both.notes)))
