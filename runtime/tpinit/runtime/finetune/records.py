"""What rank 0 writes and shows of a run: `metrics.jsonl`, TensorBoard where it is asked for, and the progress."""

from __future__ import annotations

from typing import Any

from tpinit.runtime.finetune.metrics import MetricsFile, tensorboard_writer, write_scalars
from tpinit.runtime.finetune.options import TuneOptions
from tpinit.runtime.finetune.progress import Progress

__all__ = ["Records"]


class Records:
    """The files of a run of `steps` updates that goes on after update `after`. Raises OSError and TpinitError."""

    def __init__(self, options: TuneOptions, after: int, steps: int) -> None:
        self._writer = tensorboard_writer(options.output / "tensorboard") if options.tensorboard else None
        self._file = MetricsFile(options.output, after)
        self._progress = Progress(steps, after, options.log_every)

    def add(self, page: dict[str, Any]) -> None:
        """Write and show one update."""
        self._file.add(page)
        self._progress.update(page)
        if self._writer is not None:
            write_scalars(self._writer, page)

    def close(self) -> None:
        """Close the files, and end the line of the progress."""
        self._progress.end()
        self._file.close()
        if self._writer is not None:
            self._writer.close()
