"""One run that is killed again and again, at random moments, and that goes on from its last checkpoint each time.

    python -m support.kill_trials FOLDER --trials 10 --ranks 4 --seed 0

Every trial is a world of new processes, forked from this one, which has imported all that they need. They load the
last checkpoint, and train and save until one of them gets SIGKILL: at a random moment of its forward, backward, step,
save or load. The last line of the output is a JSON object: what each rank ended with, what the folder held, and all
losses.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

PHASES = ("forward", "backward", "step", "save", "load")
TIMEOUT = 20.0  # seconds, of the collectives
GRACE = 40.0  # seconds behind it: a loaded machine
LAST = 4  # updates at most, in one trial


@dataclass
class Trial:
    """One world. `victim` is None for one that nobody kills."""

    number: int
    phase: str = ""
    victim: int | None = None
    update: int = 1  # in which of this world's updates
    fraction: float = 0.0  # of the phase's longest time so far
    background: bool = False  # the saves of this trial
    updates: int = LAST
    raises: int | None = None  # the rank whose forward raises an error in its second update
    inside: bool = False  # the phase had begun, and not ended
    late: list[int] = field(default_factory=list)  # ranks that did not end in time
    ends: dict[int, dict[str, Any]] = field(default_factory=dict)
    before: str = ""
    after: str = ""
    names: list[str] = field(default_factory=list)
    damage: str = ""


class Marks:
    """Tells the parent when the phase of a trial begins and ends on this rank, and how long all phases take."""

    def __init__(self, trial: Trial, rank: int, pipe: int) -> None:
        self.trial = trial
        self.waits = rank == trial.victim
        self.pipe = pipe
        self.update = 0
        self.longest: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        chosen = self.waits and name == self.trial.phase and (name == "load" or self.update == self.trial.update)
        if chosen:
            os.write(self.pipe, b"b")
        began = time.monotonic()
        yield
        self.longest[name] = max(self.longest.get(name, 0.0), time.monotonic() - began)
        if chosen:
            os.write(self.pipe, b"e")
            time.sleep(2 * (TIMEOUT + GRACE))  # until it is killed


def rank_main(trial: Trial, rank: int, size: int, folder: Path, pipe: int) -> dict[str, Any]:
    """Load, train and save; return how this rank ended."""
    import torch.distributed as dist
    from tpinit.reference.errors import TpinitError
    from tpinit.runtime.training.engine_checkpoint import wait_for_save

    from scenarios.save_load import engine

    store = dist.FileStore(str(folder / f"store{trial.number}"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT))
    marks, run = Marks(trial, rank, pipe), folder / "run"
    try:
        made = engine(2, seed=trial.number, dropout=0.1)
        if rank == trial.raises:
            made.module.get_submodule("model.norm").register_forward_pre_hook(lambda *_: bad_batch(marks.update))
        with marks.phase("load"):
            made.load_checkpoint(run)
        for marks.update in range(1, trial.updates + 1):
            batch = next(made.batches)
            with marks.phase("forward"):
                loss = made(**batch).loss
            with marks.phase("backward"):
                made.backward(loss)
            with marks.phase("step"):
                made.step()
            with (folder / f"losses.{rank}").open("a") as file:
                file.write(json.dumps([made.global_steps, float(loss.detach())]) + "\n")
            with marks.phase("save"):
                made.save_checkpoint(run, keep_last=3, async_save=trial.background)
                wait_for_save(made)
    except TpinitError as error:
        return {"error": type(error).__name__, "text": str(error), "is_ours": True}
    except Exception as error:
        return {"error": type(error).__name__, "text": str(error)[:500], "is_ours": False}
    dist.destroy_process_group()
    return {"error": "", "text": "", "is_ours": True, "longest": marks.longest}


def bad_batch(update: int) -> None:
    if update == 2:
        raise ValueError("a bad batch")


def start(trial: Trial, rank: int, size: int, folder: Path) -> tuple[int, int]:
    """Fork one rank; return its process id and the pipe that it writes its marks to."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    os.close(reading)
    with (folder / f"log.{rank}").open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    faulthandler.dump_traceback_later(TIMEOUT + GRACE - 5)  # where a rank waits that does not end in time
    end = rank_main(trial, rank, size, folder, writing)
    (folder / f"end{trial.number}.{rank}").write_text(json.dumps(end))
    sys.exit(1 if end["error"] else 0)  # as a program ends: this must not wait for the others


def play(trial: Trial, size: int, folder: Path, longest: dict[str, float]) -> None:
    """Run one world, kill the victim, wait for the others, and look at what they left."""
    trial.before = latest(folder)
    processes = dict(enumerate(start(trial, rank, size, folder) for rank in range(size)))
    if trial.victim is not None:
        process, pipe = processes[trial.victim]
        if select.select([pipe], [], [], TIMEOUT + GRACE)[0] and os.read(pipe, 1) == b"b":
            time.sleep(trial.fraction * longest[trial.phase])
            trial.inside = not select.select([pipe], [], [], 0)[0]
        os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + TIMEOUT + GRACE
    for rank, (process, pipe) in processes.items():
        while os.waitpid(process, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                trial.late.append(rank)
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                break
            time.sleep(0.01)
        os.close(pipe)
        end = folder / f"end{trial.number}.{rank}"
        trial.ends[rank] = json.loads(end.read_text()) if end.exists() else {"error": None}
        for name, seconds in trial.ends[rank].get("longest", {}).items():
            longest[name] = max(longest.get(name, 0.0), seconds)
    (folder / f"store{trial.number}").unlink(missing_ok=True)
    look(trial, folder)


def latest(folder: Path) -> str:
    path = folder / "run" / "latest"
    return path.read_text() if path.exists() else ""


def look(trial: Trial, folder: Path) -> None:
    """Verify, without ranks, what `latest` names."""
    from tpinit.runtime.checkpoint.load import open_checkpoint, verify
    from tpinit.runtime.errors import CheckpointError

    trial.after = latest(folder)
    trial.names = sorted(path.name for path in (folder / "run").iterdir())
    try:
        opened = open_checkpoint(folder / "run", None)
        assert opened is not None
        verify(opened, 0, 1)
    except CheckpointError as error:
        trial.damage = str(error)


def drawn(count: int, size: int, seed: int) -> list[Trial]:
    """Return trials with phases in turn, and everything else at random."""
    dice = random.Random(seed)
    return [
        Trial(
            number,
            PHASES[number % len(PHASES)],
            dice.randrange(size),
            dice.randint(1, LAST - 1),
            dice.random(),
            dice.random() < 0.3,
        )
        for number in range(1, count + 1)
    ]


def losses(folder: Path, rank: int) -> list[list[float]]:
    path = folder / f"losses.{rank}"
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    import torch

    from scenarios import save_load
    from support.tiny_models import build

    torch.set_num_threads(1)  # a process with more threads can't be forked
    save_load.build, build()  # transformers imports a model's code at its first use
    folder, size = arguments.folder, arguments.ranks
    folder.mkdir(parents=True)
    longest: dict[str, float] = {}
    first = Trial(0, updates=2)
    play(first, size, folder, longest)
    trials = drawn(arguments.trials, size, arguments.seed)
    for trial in trials:
        play(trial, size, folder, longest)
        print(json.dumps({key: value for key, value in asdict(trial).items() if key != "ends"}), flush=True)
    raising = Trial(arguments.trials + 1, raises=size - 1)
    play(raising, size, folder, longest)
    last = Trial(arguments.trials + 2, updates=2)
    play(last, size, folder, longest)
    reached = losses(folder, 0)[-1][0]
    plain = folder / "undisturbed"
    plain.mkdir()
    undisturbed = Trial(0, updates=int(reached))
    play(undisturbed, size, plain, {})
    result = {
        "trials": [asdict(one) for one in (first, *trials, raising, last, undisturbed)],
        "losses": [losses(folder, rank) for rank in range(size)],
        "undisturbed": [losses(plain, rank) for rank in range(size)],
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
