"""The stage of ZeRO: it changes where DeepSpeed stores states, gradients and weights, and no number."""

from __future__ import annotations

from collections.abc import Mapping

from tpinit.reference.errors import Problem
from tpinit.reference.spellings import is_absent, show
from tpinit.runtime.settings.key_walk import Reading
from tpinit.runtime.settings.schema import Note

__all__ = ["read_zero_stage"]

_LAST_STAGE = 3


def read_zero_stage(config: Mapping[str, object], dp_size: int, reading: Reading) -> int:
    """Return the stage of ZeRO, 0 to 3.

    With one data-parallel rank a stage has nothing to shard, and is accepted with a note. With more, stages 1 and 2
    shard the optimizer's states over them, stage 2 the gradients too, and stage 3 is refused.
    """
    section = config.get("zero_optimization")
    stage = int(section) if isinstance(section, bool) else section.get("stage") if isinstance(section, Mapping) else 0
    if is_absent(stage):
        return 0
    if type(stage) is not int or not 0 <= stage <= _LAST_STAGE:
        path = "zero_optimization.stage"
        reading.problems.append(Problem(path, show(stage), "this must be 0, 1, 2 or 3", "write 0"))
        return 0
    shown = f"zero_optimization.stage = {stage}"
    if stage and dp_size == 1:
        text = f"{shown}: there is one data-parallel rank, so ZeRO has nothing to shard"
        reading.notes.append(Note(text, changes_training=False))
    elif stage == _LAST_STAGE:
        reading.refusals.append(
            f"{shown}: weights are not sharded over {dp_size} data-parallel ranks; write stage 2, and raise "
            "autotp_size if the weights do not fit"
        )
    elif stage:
        what = "the optimizer's states are" if stage == 1 else "the optimizer's states and the gradients are"
        text = f"{shown}: {what} sharded over {dp_size} data-parallel ranks"
        reading.notes.append(Note(text, changes_training=False))
    return stage
