"""The data loader: each data-parallel rank reads its own part of the data, all ranks of a TP group the same part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler
from tpinit.runtime.settings import Settings

__all__ = ["EndlessBatches", "make_loader"]


def make_loader(
    dataset: Any, settings: Settings, replicas: int, index: int, collate_fn: Callable[..., Any] | None
) -> DataLoader[Any]:
    """Return a loader of micro batches over part `index` of `replicas` of a map-style dataset, shuffled by epoch."""
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, num_replicas=replicas, rank=index)
    return DataLoader(
        dataset,
        batch_size=settings.batch.micro,
        sampler=sampler,
        collate_fn=collate_fn,
        drop_last=settings.drop_last,
    )


class EndlessBatches:
    """The micro batches of a loader, epoch after epoch, each shuffled anew. `epoch` counts from 0."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.epoch = -1
        self._rest: Iterator[Any] = iter(())

    def __iter__(self) -> EndlessBatches:
        return self

    def __next__(self) -> Any:
        for batch in self._rest:
            return batch
        self.epoch += 1
        if isinstance(self.loader.sampler, DistributedSampler):
            self.loader.sampler.set_epoch(self.epoch)
        self._rest = iter(self.loader)
        return next(self._rest)
