"""Judging many mutants in processes, in the order in which they are asked for."""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from tpinit.proofs.mutation.battery import Coverage
from tpinit.proofs.mutation.ending import unwind_on_sigterm
from tpinit.proofs.mutation.record import Fate, Judged

__all__ = ["Code", "Spec", "judge_all", "listed", "stale"]

_LISTED = Path(__file__).with_name("equivalent.json")
_PATIENCE = 35.0  # seconds for a worker that is asked to end: a solver must come back first


@dataclass(frozen=True, slots=True)
class Spec:
    """A mutant of the contract, by its place among all of them, and the theorems that may not kill it."""

    place: int
    without: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Code:
    """A mutant of the code, by the place of its target and its name."""

    target: int
    name: str


def listed() -> dict[str, str]:
    """Return the survivors that may survive, by their names, each with its reason.

    Raises ValueError for one without a reason.
    """
    found: dict[str, str] = json.loads(_LISTED.read_text(encoding="utf-8"))
    for name, reason in found.items():
        if not isinstance(reason, str) or len(reason.split()) < 4:
            raise ValueError(f"{_LISTED.name}: {name!r} has no reason; write in a sentence why it is no defect")
    return found


# What the workers share: made once, in `_start`.
_SHARED: dict[str, Mapping[int, Coverage]] = {}


def _start(coverage: Mapping[int, Coverage]) -> None:
    unwind_on_sigterm()
    _SHARED["coverage"] = coverage
    # Loaded here, once, what every forked process needs.
    for name in sorted(set().union(*(one.modules for one in coverage.values()))):
        with suppress(Exception):  # a platform's module, or half of a package: whoever needs it will say so
            importlib.import_module(name)
    gc.freeze()  # so that no forked process walks and copies all of it


def _judge(task: Spec | Code) -> Judged:
    try:
        return _judged(task)
    except Exception as error:  # told beside the others: a mutant that can't be judged has not been killed
        name = task.name if isinstance(task, Code) else f"mutant {task.place} of the contract"
        return Judged("?", name, Fate.SURVIVED, "", f"could not be judged: {type(error).__name__}: {error}")
    except SystemExit:  # asked to end, and all is cleared up; the pool would take it for an answer and go on
        os._exit(128 + signal.SIGTERM)


def _judged(task: Spec | Code) -> Judged:
    if isinstance(task, Spec):
        from tpinit.proofs.mutation.judging import judge_spec
        from tpinit.proofs.mutation.spec import spec_mutants

        return judge_spec(spec_mutants()[task.place], task.without)
    from tpinit.proofs.mutation.code import TARGETS, judge_code

    return judge_code(TARGETS[task.target], task.name, _SHARED["coverage"][task.target], listed())


def judge_all(
    tasks: Sequence[Spec | Code], coverage: Mapping[int, Coverage], jobs: int, done: Callable[[Judged], None]
) -> list[Judged]:
    """Judge all tasks in `jobs` processes; `done` hears of each, in order."""
    context = get_context("spawn")
    judged = []
    others = set(active_children())
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(coverage,)) as pool:
        try:
            for one in pool.map(_judge, tasks, chunksize=4):
                judged.append(one)
                done(one)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            _end(set(active_children()) - others)
            raise
    return judged


def _end(workers: Collection[BaseProcess]) -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(_PATIENCE)
        worker.kill()


def stale(judged: Collection[Judged], names: Collection[str], reasons: Mapping[str, str]) -> list[str]:
    """Return the listed survivors that are none: they were killed, or there is no such mutant."""
    killed = {one.name for one in judged if one.fate is Fate.KILLED}
    return [name for name in reasons if name in killed or name not in names]
