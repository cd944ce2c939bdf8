"""A run that is killed at random moments loses no checkpoint, its other ranks say why, and its losses stay the same.

`make test` runs 10 trials over two ranks, `make test-faults` 100 over four (tests/support/kill_trials.py).
"""

from __future__ import annotations

import collections
import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from support.kill_trials import PHASES
from support.paths import DISTRIBUTED, TESTS

pytestmark = pytest.mark.distributed

TRIALS = int(os.environ.get("TPINIT_KILL_TRIALS", "10"))
RANKS = int(os.environ.get("TPINIT_KILL_RANKS", "2"))
SEED = int(os.environ.get("TPINIT_KILL_SEED", "0"))
# Of a rank that noticed the end of another one: in a collective, before a call, in a save in the background.
ERRORS = {"CollectiveError", "AgreementError", "CheckpointError"}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("kills") / "all"
    path = os.pathsep.join([str(TESTS), str(DISTRIBUTED), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "support.kill_trials", str(folder)]
    numbers = ("--trials", str(TRIALS), "--ranks", str(RANKS), "--seed", str(SEED))
    done = subprocess.run(
        [*command, *numbers],
        capture_output=True,
        text=True,
        timeout=60 + 60 * TRIALS,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(summary(found))
    return found


def summary(result: dict[str, Any]) -> str:
    """Return how many trials of each phase there were, and what the other ranks ended with."""
    lines = []
    for phase in PHASES:
        trials = [trial for trial in result["trials"] if trial["phase"] == phase]
        ends = collections.Counter(end["error"] for trial in trials for end in survivors(trial).values())
        inside = sum(trial["inside"] for trial in trials)
        lines.append(f"{phase}: {len(trials)} kills, {inside} of them before its end; others ended with {dict(ends)}")
    return "\n".join(lines)


def survivors(trial: dict[str, Any]) -> dict[str, Any]:
    return {rank: end for rank, end in trial["ends"].items() if int(rank) != trial["victim"]}


def killed(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [trial for trial in result["trials"] if trial["victim"] is not None]


@pytest.mark.timeout(120 + 60 * TRIALS)
def test_every_phase_was_killed_and_most_before_its_end(result: dict[str, Any]) -> None:
    assert len(killed(result)) == TRIALS
    assert {trial["phase"] for trial in killed(result)} == set(PHASES)
    assert all(trial["ends"][str(trial["victim"])]["error"] is None for trial in killed(result))
    assert sum(trial["inside"] for trial in killed(result)) >= TRIALS // 4


def test_all_other_ranks_end_in_time_with_an_error_that_says_why(result: dict[str, Any]) -> None:
    for trial in killed(result):
        where = f"trial {trial['number']}, {trial['phase']}"
        assert trial["late"] == [], where
        assert len(survivors(trial)) == RANKS - 1
        for rank, end in survivors(trial).items():
            assert end["is_ours"], f"{where}, rank {rank}: {end['error']}: {end['text']}"
            assert end["error"] in ERRORS, f"{where}, rank {rank}: {end['error']}: {end['text']}"
            assert "a rank of its group" in end["text"] or "not every rank of the TP group" in end["text"]
            assert "the last collectives of each rank" in end["text"], f"{where}, rank {rank}: {end['text']}"
        texts = [end["text"] for end in survivors(trial).values()]
        assert any(f"rank {trial['victim']}, whose process ended" in text for text in texts), f"{where}: {texts}"


def test_a_rank_whose_forward_raises_is_named_by_the_others(result: dict[str, Any]) -> None:
    (trial,) = (trial for trial in result["trials"] if trial["raises"] is not None)
    assert trial["late"] == []
    others = dict(trial["ends"])
    own = others.pop(str(trial["raises"]))
    assert (own["error"], own["text"]) == ("ValueError", "a bad batch")
    assert len(others) == RANKS - 1
    assert {end["error"] for end in others.values()} <= ERRORS
    assert any("the forward raised ValueError: a bad batch" in end["text"] for end in others.values())


def test_no_checkpoint_is_lost_and_latest_is_true(result: dict[str, Any]) -> None:
    before = 0
    for trial in result["trials"][:-1]:
        assert trial["damage"] == "", trial
        after = int(trial["after"].removeprefix("global_step"))
        assert after >= before
        assert trial["after"] in trial["names"]
        before = after
    assert before > TRIALS // 2  # the trials went on, and did not only repeat the first updates


def test_the_losses_are_those_of_an_undisturbed_run(result: dict[str, Any]) -> None:
    logged = 0
    for disturbed, plain in zip(result["losses"], result["undisturbed"], strict=True):
        expected = dict(plain)
        assert [loss - expected[update] for update, loss in disturbed] == [0.0] * len(disturbed)
        assert max(expected) == max(update for update, _ in disturbed)
        logged += len(disturbed) - len({update for update, _ in disturbed})
    assert logged  # some updates were done twice: their first results were not saved


def _plant(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda found: found["trials"][1].update({key: value})


def _silence(found: dict[str, Any]) -> None:
    """Take the text from the errors of all ranks but the one that raised: with more than two, several name it."""
    (trial,) = (trial for trial in found["trials"] if trial["raises"] is not None)
    for rank, end in trial["ends"].items():
        if int(rank) != trial["raises"]:
            end["text"] = ""


def _plant_end(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda found: next(iter(survivors(found["trials"][1]).values())).update(values)


@pytest.mark.parametrize(
    ("defect", "judge"),
    [
        (_plant("late", [0]), test_all_other_ranks_end_in_time_with_an_error_that_says_why),
        (_plant_end(error="RuntimeError", is_ours=False), test_all_other_ranks_end_in_time_with_an_error_that_says_why),
        (_plant_end(text="Connection closed by peer"), test_all_other_ranks_end_in_time_with_an_error_that_says_why),
        (_silence, test_a_rank_whose_forward_raises_is_named_by_the_others),
        (_plant("damage", "a file is not the file that was saved"), test_no_checkpoint_is_lost_and_latest_is_true),
        (_plant("after", "global_step1"), test_no_checkpoint_is_lost_and_latest_is_true),
        (_plant("phase", "none"), test_every_phase_was_killed_and_most_before_its_end),
        (lambda found: found["losses"][0][-1].__setitem__(1, 0.5), test_the_losses_are_those_of_an_undisturbed_run),
    ],
)
def test_each_defect_is_found(
    result: dict[str, Any], defect: Callable[[dict[str, Any]], None], judge: Callable[[dict[str, Any]], None]
) -> None:
    found = copy.deepcopy(result)
    defect(found)
    if judge is test_every_phase_was_killed_and_most_before_its_end:  # one of several trials of its phase
        found["trials"] = [one for one in found["trials"] if one["phase"] in ("none", "")]
    with pytest.raises(AssertionError):
        judge(found)
