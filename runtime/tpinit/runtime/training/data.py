"""The data loader: each data-parallel rank reads its own part of the data, all ranks of a TP group the same part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
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
    """The micro batches of a loader, epoch after epoch, each shuffled anew.

    `epoch` counts from 0, and is -1 before the first micro batch; `index` counts the micro batches read of it.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.epoch = -1
        self.index = 0
        self._rest: Iterator[Any] = iter(())

    def __iter__(self) -> EndlessBatches:
        return self

    def __next__(self) -> Any:
        for batch in self._rest:
            self.index += 1
            return batch
        self._start(self.epoch + 1, self.loader)
        self.index += 1
        return next(self._rest)

    def _start(self, epoch: int, loader: DataLoader[Any]) -> None:
        self.epoch = epoch
        self.index = 0
        if isinstance(self.loader.sampler, DistributedSampler):
            self.loader.sampler.set_epoch(self.epoch)
        self._rest = iter(loader)

    def state_dict(self) -> dict[str, int]:
        """Return the position: what the next micro batch is."""
        return {"epoch": self.epoch, "index": self.index}

    def seek(self, epoch: int, index: int) -> None:
        """Let micro batch `index` of an epoch be the next one. The samples before it are not read."""
        if epoch < 0:
            self.epoch, self.index, self._rest = -1, 0, iter(())
            return
        loader, batches = self.loader, self.loader.batch_sampler
        if index and batches is not None:
            loader = DataLoader(
                loader.dataset,
                batch_sampler=_From(batches, index),
                collate_fn=loader.collate_fn,
                num_workers=loader.num_workers,
                pin_memory=loader.pin_memory,
                worker_init_fn=loader.worker_init_fn,
            )
        self._start(epoch, loader)
        self.index = index


class _From:
    """The batches of a sampler from number `first` on."""

    def __init__(self, batches: Iterable[list[int]], first: int) -> None:
        self._batches = batches
        self._first = first

    def __iter__(self) -> Iterator[list[int]]:
        return islice(iter(self._batches), self._first, None)
