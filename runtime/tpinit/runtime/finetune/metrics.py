"""What a run measured, as JSON lines in a file, and in TensorBoard where that is installed."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tpinit.reference.errors import TpinitError

__all__ = ["FILE", "MetricsFile", "read_metrics", "tensorboard_writer"]

FILE = "metrics.jsonl"
_SCALARS = ("loss", "grad_norm", "lr", "tokens_per_second", "memory_bytes")


class MetricsFile:
    """The file `metrics.jsonl` of a run, one object for each update. `after_step` updates of it are kept."""

    def __init__(self, folder: Path, after_step: int) -> None:
        self.path = folder / FILE
        kept = [page for page in read_metrics(folder) if page["step"] <= after_step]
        temporary = self.path.with_suffix(".new")
        try:
            temporary.write_text("".join(f"{json.dumps(page)}\n" for page in kept), encoding="utf-8")
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        self._file = self.path.open("ab", buffering=0)  # a line is in the file at once, or `add` raises

    def add(self, page: dict[str, Any]) -> None:
        """Write one update. Raises OSError."""
        line = memoryview(f"{json.dumps(page)}\n".encode())
        while line:
            line = line[self._file.write(line) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the updates that a run has written; an incomplete last line, of a run that was killed, is left out."""
    path = folder / FILE
    if not path.exists():
        return []
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            page = json.loads(line)
        except ValueError:
            break
        if not isinstance(page, dict) or type(page.get("step")) is not int:
            break
        found.append(page)
    return found


def tensorboard_writer(folder: Path) -> Any:
    """Return torch's writer for TensorBoard. Raises TpinitError if the package is not installed."""
    if find_spec("tensorboard") is None:
        raise TpinitError("--tensorboard needs the package tensorboard, not installed here: pip install tensorboard")
    from torch.utils.tensorboard.writer import SummaryWriter

    return SummaryWriter(str(folder))


def write_scalars(writer: Any, page: dict[str, Any]) -> None:
    """Give the numbers of one update to TensorBoard."""
    for name in _SCALARS:
        if page.get(name) is not None:
            writer.add_scalar(name, page[name], page["step"])
