"""Judge many mutants in worker processes, in the given order."""

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

from tpinit.proofs.mutation.result import MutantResult, MutantStatus
from tpinit.proofs.mutation.sigterm import raise_on_sigterm
from tpinit.proofs.mutation.test_runner import Coverage

__all__ = ["CodeMutantId", "SpecMutantId", "judge_all", "accepted_survivors", "stale_entries"]

_LISTED = Path(__file__).with_name("equivalent.json")
_PATIENCE = 35.0  # seconds to wait for a worker after SIGTERM: its solver call must return first


@dataclass(frozen=True, slots=True)
class SpecMutantId:
    """The index of a mutant of the contract, and the theorems that are left out when it is judged."""

    place: int
    without: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CodeMutantId:
    """The index of the target of a mutant of the code, and the name of the mutant."""

    target: int
    name: str


def accepted_survivors() -> dict[str, str]:
    """Return the accepted survivors of equivalent.json: the name and the reason of each.

    Raises ValueError for an entry without a reason.
    """
    found: dict[str, str] = json.loads(_LISTED.read_text(encoding="utf-8"))
    for name, reason in found.items():
        if not isinstance(reason, str) or len(reason.split()) < 4:
            raise ValueError(
                f"{_LISTED.name}: {name!r} has no reason; write a sentence that says why the mutant is no defect"
            )
    return found


# Data of a worker process, set once in `_start`.
_SHARED: dict[str, Mapping[int, Coverage]] = {}


def _start(coverage: Mapping[int, Coverage]) -> None:
    raise_on_sigterm()
    _SHARED["coverage"] = coverage
    # Import once what every forked process needs.
    for name in sorted(set().union(*(one.modules for one in coverage.values()))):
        with suppress(Exception):  # platform-specific modules fail here; a test that needs one reports it
            importlib.import_module(name)
    gc.freeze()  # so that the garbage collector of a forked process does not touch, and so copy, these pages


def _judge(task: SpecMutantId | CodeMutantId) -> MutantResult:
    try:
        return _judged(task)
    except Exception as error:  # a mutant that can't be judged counts as survived
        name = task.name if isinstance(task, CodeMutantId) else f"mutant {task.place} of the contract"
        return MutantResult(
            "?", name, MutantStatus.SURVIVED, "", f"could not be judged: {type(error).__name__}: {error}"
        )
    except SystemExit:  # after clean-up on SIGTERM; the pool would treat SystemExit as a result
        os._exit(128 + signal.SIGTERM)


def _judged(task: SpecMutantId | CodeMutantId) -> MutantResult:
    if isinstance(task, SpecMutantId):
        from tpinit.proofs.mutation.judge import judge_spec
        from tpinit.proofs.mutation.spec import spec_mutants

        return judge_spec(spec_mutants()[task.place], task.without)
    from tpinit.proofs.mutation.code import TARGETS, judge_code

    return judge_code(TARGETS[task.target], task.name, _SHARED["coverage"][task.target], accepted_survivors())


def judge_all(
    tasks: Sequence[SpecMutantId | CodeMutantId],
    coverage: Mapping[int, Coverage],
    jobs: int,
    done: Callable[[MutantResult], None],
) -> list[MutantResult]:
    """Judge all tasks in `jobs` processes and return the results in order; `done` is called with each result."""
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


def stale_entries(judged: Collection[MutantResult], names: Collection[str], reasons: Mapping[str, str]) -> list[str]:
    """Return the entries of equivalent.json whose mutant was killed or does not exist."""
    killed = {one.name for one in judged if one.status is MutantStatus.KILLED}
    return [name for name in reasons if name in killed or name not in names]
