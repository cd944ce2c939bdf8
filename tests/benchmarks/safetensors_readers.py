"""Our reader of safetensors files beside `safe_open().get_slice`: time, memory, and a file that is truncated meanwhile.

    PYTHONPATH=tests python -m benchmarks.safetensors_readers

Writes a model of about 100 MB to a temporary directory. Each reader, in a process of its own, reads the slices of rank
1 of 2: half of the rows of one matrix, half of the columns of the next. Prints ratios to our reader.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tpinit.runtime.loading.safetensors_dir import open_safetensors_dir

__all__: list[str] = []

_MATRICES, _SIZE, _ROUNDS = 6, 2048, 15
_FILE = "model.safetensors"
Fill = Callable[[str, torch.Tensor, bool], None]  # name, output, whether its columns are sharded


def _our_reader(folder: Path) -> Fill:
    stored = open_safetensors_dir(folder).tensors

    def fill(name: str, out: torch.Tensor, columns: bool) -> None:
        half, whole = (_SIZE // 2, _SIZE // 2), (0, _SIZE)
        stored[name].read_into(out, (whole, half) if columns else (half, whole))

    return fill


def _safe_open(**options: Any) -> Callable[[Path], Fill]:
    def open_file(folder: Path) -> Fill:
        file: Any = safe_open(folder / _FILE, framework="pt", **options)

        def fill(name: str, out: torch.Tensor, columns: bool) -> None:
            stored = file.get_slice(name)
            out.copy_(stored[:, _SIZE // 2 :] if columns else stored[_SIZE // 2 :])

        return fill

    return open_file


READERS: dict[str, Callable[[Path], Fill]] = {
    "ours": _our_reader,
    "safe_open, mmap": _safe_open(),
    "safe_open, pread": _safe_open(backend="pread"),
}


def _anonymous() -> int:
    """Return the bytes of private memory of this process that are not pages of a mapped file."""
    return _bytes_of("smaps_rollup", "Anonymous:")


def _bytes_of(page: str, field: str) -> int:
    lines = (Path("/proc/self") / page).read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _measure(reader: str, folder: Path) -> dict[str, float]:
    """Read all slices several times; return seconds (median) and the growth of memory in multiples of the slices."""
    outs = {}
    for index in range(_MATRICES):
        rows, columns = (_SIZE, _SIZE // 2) if index % 2 else (_SIZE // 2, _SIZE)
        outs[f"layer{index}"] = torch.ones(rows, columns)
    own = sum(out.nbytes for out in outs.values())
    Path("/proc/self/clear_refs").write_text("5")  # begins VmHWM, the peak of resident memory, anew
    resident, anonymous = _bytes_of("status", "VmHWM:"), _anonymous()
    seconds: list[float] = []
    peak = 0
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        fill = READERS[reader](folder)
        for index, (name, out) in enumerate(outs.items()):
            fill(name, out, index % 2 == 1)
            peak = max(peak, _anonymous()) if not seconds else peak  # not in the rounds that are timed
        seconds.append(time.perf_counter() - start)
    grown = _bytes_of("status", "VmHWM:") - resident
    return {"seconds": median(seconds[1:]), "resident": grown / own, "anonymous": (peak - anonymous) / own}


def _truncated(reader: str, folder: Path) -> dict[str, str]:
    """Open the file, truncate it, and read: return the error. A process that a signal kills returns nothing."""
    fill = READERS[reader](folder)
    with (folder / _FILE).open("r+b") as file:
        file.truncate(1 << 20)
    try:
        fill(f"layer{_MATRICES - 1}", torch.empty(_SIZE, _SIZE // 2), True)
    except Exception as error:  # what the reader raises is the result
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": "none"}


def _run(what: str, reader: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", __spec__.name, what, reader, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        return {"error": f"the process ends with {done.returncode} (negative: killed by this signal)"}
    page: dict[str, Any] = json.loads(done.stdout)
    return page


def _save(folder: Path) -> None:
    torch.manual_seed(0)
    save_file({f"layer{index}": torch.randn(_SIZE, _SIZE) for index in range(_MATRICES)}, folder / _FILE)


def main() -> None:
    """Measure every reader and print one line for each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _save(folder)
        measured = {reader: _run("measure", reader, folder) for reader in READERS}
        for reader, found in measured.items():
            _save(folder)
            outcome = _run("truncated", reader, folder)["error"]
            ratio = found["seconds"] / measured["ours"]["seconds"]
            print(
                f"{reader:17} time {ratio:5.2f} x ours, peak RSS {found['resident']:5.2f} x and private memory "
                f"{found['anonymous']:5.2f} x the slices beyond them; truncated: {outcome.replace(name, '')}"
            )


if __name__ == "__main__":
    if sys.argv[1:]:
        step = {"measure": _measure, "truncated": _truncated}[sys.argv[1]]
        print(json.dumps(step(sys.argv[2], Path(sys.argv[3]))))
    else:
        main()
