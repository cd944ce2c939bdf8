"""One update, or one evaluation, over micro batches of an iterator: `engine.train_batch` and `engine.eval_batch`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from tpinit.runtime.errors import EngineError
from tpinit.runtime.training.exit_signal import TrainingStopped

if TYPE_CHECKING:
    from tpinit.runtime.training.engine import Engine

__all__ = ["eval_batch", "train_batch"]


def train_batch(engine: Engine, data_iter: Iterator[Any] | None = None) -> torch.Tensor:
    """Train one update: forward, backward and step of each micro batch in it. Returns their mean loss, a scalar.

    `data_iter` gives micro batches: mappings of keyword arguments, sequences of positional ones, or one tensor. Without
    it the engine reads its own `training_dataloader`, epoch after epoch. Raises EngineError in evaluation mode, between
    the micro batches of an update, without data, and if the iterator ends within the update. Raises TrainingStopped,
    whose `loss` is this mean, behind an update in which a signal came (`exit_on_signal`).
    """
    if not engine.training:
        raise EngineError("train_batch needs training mode: call engine.train() first")
    count = engine.settings.batch.accumulation
    if engine.micro_steps % count:
        raise EngineError(
            f"train_batch was called after {engine.micro_steps % count} of the {count} micro batches of an update: "
            "finish the update with backward and step first"
        )
    losses = []
    for batch in _take(engine, data_iter, count):
        loss = _loss(_run(engine, batch))
        engine.backward(loss)
        losses.append(loss.detach())
        try:
            engine.step()
        except TrainingStopped as stop:  # behind the update
            stop.loss = torch.stack(losses).mean()
            raise
    return torch.stack(losses).mean()


def eval_batch(engine: Engine, data_iter: Iterator[Any]) -> torch.Tensor:
    """Evaluate as many micro batches as an update has, without gradients. Returns their mean loss, a scalar.

    The model is in evaluation mode meanwhile, and in its former mode after it. Raises EngineError as `train_batch`.
    """
    training = engine.training
    engine.eval()
    try:
        with torch.no_grad():
            batches = _take(engine, data_iter, engine.settings.batch.accumulation)
            return torch.stack([_loss(_run(engine, batch)) for batch in batches]).mean()
    finally:
        engine.train(training)


def _take(engine: Engine, data_iter: Iterator[Any] | None, count: int) -> list[Any]:
    """Return the micro batches of one update: all of them, before the first forward changes anything."""
    if data_iter is None:
        if engine.batches is None:
            raise EngineError("train_batch needs data: give it an iterator, or training_data to initialize")
        data_iter = engine.batches
    batches = list(itertools.islice(data_iter, count))
    if len(batches) < count:
        raise EngineError(
            f"the data ended after {len(batches)} of the {count} micro batches of an update: give an iterator of more, "
            "or one that starts again"
        )
    return batches


def _run(engine: Engine, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return engine(**batch)
    return engine(*batch) if isinstance(batch, (tuple, list)) else engine(batch)


def _loss(output: Any) -> torch.Tensor:
    loss = output if isinstance(output, torch.Tensor) else getattr(output, "loss", None)
    if loss is None and isinstance(output, (tuple, list)) and output:
        loss = output[0]
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise EngineError(
            "the forward returned no scalar loss: give labels in the batch, or call engine(...), engine.backward(loss) "
            "and engine.step() with a loss of your own"
        )
    return loss
