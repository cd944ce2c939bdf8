"""Batch sizes: any one of the three follows from the others, over data-parallel ranks (D16)."""

from __future__ import annotations

from collections.abc import Mapping

from tpinit.reference.errors import Problem
from tpinit.reference.spellings import AUTO, is_absent, show
from tpinit.runtime.settings.schema import BatchSizes, Note

__all__ = ["BATCH_KEYS", "read_batch_sizes"]

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
_DEEPSPEED = "DeepSpeed 0.19.8 without an mpu counts all"

Given = tuple[int | None, int | None, int | None]


def read_batch_sizes(
    config: Mapping[str, object], dp_size: int, deepspeed_size: int, problems: list[Problem], notes: list[Note]
) -> BatchSizes:
    """Compute the missing batch sizes from the given ones, as DeepSpeed does, over `dp_size` data-parallel ranks (D16).

    `deepspeed_size` is the number of ranks that DeepSpeed counts. Adds a Problem, with the equation, if the sizes do
    not multiply up; a Note with both countings if a size that follows differs between them.
    """
    count = len(problems)
    train, micro, steps = (_count(config, name, problems) for name in BATCH_KEYS)
    given = (train, micro, steps)
    problems += [_unresolved(name) for name in _unresolved_names(config, given)]
    if len(problems) > count:
        return BatchSizes(train, micro, steps or 1)
    if train is None and micro is None:
        # A batch size is needed for training_data only; callers may pass batches of any size to the engine.
        return BatchSizes(None, None, steps or 1)
    sizes = _complete(given, dp_size)
    theirs = _complete(given, deepspeed_size)
    if sizes is None:
        problems.append(_mismatch(given, dp_size, deepspeed_size, theirs))
        return BatchSizes(train, micro, steps or 1)
    if deepspeed_size != dp_size and sizes != theirs:
        notes.append(_two_countings(given, sizes, theirs, dp_size, deepspeed_size))
    return sizes


def _complete(given: Given, ranks: int) -> BatchSizes | None:
    """Return all three sizes over `ranks` data-parallel ranks; None if they do not multiply up."""
    train, micro, steps = given
    if steps is None:
        steps = train // (micro * ranks) if train is not None and micro is not None else 1
    if micro is None and train is not None:
        micro = train // (ranks * steps) if steps else 0
    if train is None and micro is not None:
        train = micro * steps * ranks
    assert train is not None
    assert micro is not None
    return BatchSizes(train, micro, steps) if micro >= 1 and steps >= 1 and train == micro * steps * ranks else None


def _unresolved_names(config: Mapping[str, object], given: Given) -> list[str]:
    """Return the names of the sizes that are "auto" and do not follow from the two others."""
    train, micro, steps = given
    accumulation_known = steps is not None or config.get(BATCH_KEYS[2]) is None
    follows = (
        micro is not None and accumulation_known,
        train is not None and accumulation_known,
        train is not None and micro is not None,
    )
    return [
        name for name, is_known in zip(BATCH_KEYS, follows, strict=True) if config.get(name) == AUTO and not is_known
    ]


def _unresolved(name: str) -> Problem:
    return Problem(
        name,
        show(AUTO),
        "transformers' Trainer and accelerate fill this in, and no caller did; it does not follow from the other batch "
        "sizes",
        "write a number, or give the two other batch sizes",
    )


def _mismatch(given: Given, dp_size: int, deepspeed_size: int, theirs: BatchSizes | None) -> Problem:
    """Return the problem of sizes that do not multiply up: the equation, and both countings where they differ."""
    names = [f"{name} {value}" for name, value in zip(BATCH_KEYS, given, strict=True) if value is not None]
    train, micro, steps = given
    message = (
        f"the batch sizes do not multiply up over {dp_size} data-parallel ranks: train_batch_size must be "
        f"train_micro_batch_size_per_gpu x gradient_accumulation_steps x {dp_size}, all at least 1"
    )
    fix = "give two of the three and leave the third out"
    if micro is not None and steps is not None:
        message += f"; {micro} x {steps} x {dp_size} = {micro * steps * dp_size}, not {train}"
        fix = f"write train_batch_size {micro * steps * dp_size}, or leave it out"
    else:
        divisor = f"{steps or 1} x {dp_size}" if micro is None else f"{micro} x {dp_size}"
        message += f"; {train} / ({divisor}) is not a whole number"
    if theirs is not None and deepspeed_size != dp_size:
        message += (
            f". {_DEEPSPEED} {deepspeed_size} ranks: {theirs.micro} x {theirs.accumulation} x {deepspeed_size} = "
            f"{theirs.train}; only data-parallel ranks have samples of their own (D16)"
        )
    return Problem("train_batch_size", ", ".join(names), message, fix)


def _two_countings(
    given: Given, sizes: BatchSizes, theirs: BatchSizes | None, dp_size: int, deepspeed_size: int
) -> Note:
    """Return the note on a size that follows from the others, and differs from the one that DeepSpeed derives."""
    equation = f"{sizes.train} = {sizes.micro} x {sizes.accumulation} x {dp_size}"
    text = (
        "batch sizes (train_batch_size = train_micro_batch_size_per_gpu x gradient_accumulation_steps x ranks): "
        f"{equation} over data-parallel ranks (D16). {_DEEPSPEED} {deepspeed_size} ranks: "
    )
    if theirs is None:
        return Note(f"{text}they would not multiply up")
    text += f"{theirs.train} = {theirs.micro} x {theirs.accumulation} x {deepspeed_size}"
    if given[0] is None:  # only the number of samples differs, which no update depends on
        return Note(text, changes_training=False)
    # With DeepSpeed's micro batch and accumulation an update has fewer samples here.
    assert theirs.micro is not None
    fix = theirs.micro * theirs.accumulation * dp_size
    return Note(
        f"{text}. For gradient_accumulation_steps {theirs.accumulation} and train_micro_batch_size_per_gpu "
        f"{theirs.micro}, write train_batch_size {fix}"
    )


def _count(config: Mapping[str, object], key: str, problems: list[Problem]) -> int | None:
    value = config.get(key)
    if is_absent(value):
        return None
    if type(value) is int and value >= 1:
        return value
    problems.append(Problem(key, show(value), "this must be an integer of at least 1", f"write {key}: 1, or more"))
    return None
