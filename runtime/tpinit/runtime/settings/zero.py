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

    With one data-parallel rank a stage has nothing to shard, and is accepted with a note. With more ranks stages above
    0 are refused.
    """
    section = config.get("zero_optimization")
    stage = int(section) if isinstance(section, bool) else section.get("stage") if isinstance(section, Mapping) else 0
    if is_absent(stage):
        return 0
    if type(stage) is not int or not 0 <= stage <= _LAST_STAGE:
        path = "zero_optimization.stage"
        reading.problems.append(Problem(path, show(stage), "this must be 0, 1, 2 or 3", "write 0"))
        return 0
    if stage and dp_size == 1:
        reading.notes.append(
            Note(
                f"zero_optimization.stage = {stage}: there is one data-parallel rank, so ZeRO has nothing to shard",
                changes_training=False,
            )
        )
    elif stage:
        reading.refusals.append(
            f"zero_optimization.stage = {stage}: only stage 0 is implemented over {dp_size} data-parallel ranks; write "
            "stage 0, and raise autotp_size if the optimizer's states do not fit"
        )
    return stage
