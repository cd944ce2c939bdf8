"""Shard every model of the catalogue with tpinit and its peers, and compare it with the unsharded model: `make models`.

    PYTHONPATH=tests python -m families.sweep [NAME ...] [--tp 2] [--peers deepspeed,transformers]
        [--document docs/models.md]

Prints a line for each model and runner, and writes the page. The exit code is 1 if tpinit trains a model wrongly or
fails other than by refusing it. `--results FILE` saves each result and skips models with a saved one.

DeepSpeed runs in another environment: TPINIT_DEEPSPEED_PYTHON is its interpreter.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from families import cases, catalogue, ranks
from families.judging import FamilyResult, FamilyStatus, better, judge_ours, judge_peer
from families.page import page

RUNNERS = ("ours", "deepspeed", "transformers")
TIMEOUT = 90.0  # seconds per model: ten times what the slowest takes on an idle machine
Key = tuple[str, str, str]  # runner, "causal" or "family", model


def main() -> int:
    """Run the sweep or, with --runner, the part of one runner, for a sweep under another interpreter."""
    options = _options()
    wanted = [(kind, name) for kind, name in _models(options.kind) if not options.names or name in options.names]
    unknown = sorted({*options.names} - {name for _, name in wanted})
    if unknown:
        sys.stderr.write(f"no such models: {', '.join(unknown)}\n")
        return 2
    if options.runner:
        for (_, kind, name), outcome in _here(options.runner, wanted, options.tp):
            sys.stdout.write("@" + json.dumps([kind, name, outcome.as_dict()]) + "\n")
            sys.stdout.flush()
        return 0
    found = _saved(options.results)
    for runner in ("ours", *options.peers):
        todo = [(kind, name) for kind, name in wanted if (runner, kind, name) not in found]
        for key, outcome in _elsewhere(todo, options.tp) if runner == "deepspeed" else _here(runner, todo, options.tp):
            found[key] = outcome
            _save(options.results, key, outcome)
    shown = {key: outcome for key, outcome in found.items() if key[1:] in wanted}
    if options.document:
        Path(options.document).write_text(page(shown, catalogue.UNBUILDABLE, options.tp, _versions()), encoding="utf-8")
    bad = [key for key, outcome in shown.items() if key[0] == "ours" and failed(outcome)]
    for _, kind, name in bad:
        outcome = shown["ours", kind, name]
        sys.stderr.write(f"{name} ({kind}): {outcome.verdict.value} {outcome.words}\n{outcome.trace}\n")
    return 1 if bad else 0


def failed(outcome: FamilyResult) -> bool:
    """Return whether a result of tpinit is a failure: anything but exact and refused."""
    return outcome.verdict not in {FamilyStatus.EXACT, FamilyStatus.REFUSED}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Shard every model of the catalogue, and compare it with the unsharded model."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="models (default: all)")
    parser.add_argument("--tp", type=int, default=2, help="ranks (default: 2)")
    parser.add_argument("--peers", default="transformers,deepspeed", type=_peers, help="a list, or none")
    parser.add_argument("--document", help="write the page to this file")
    parser.add_argument("--results", help="save results in this file of JSON lines, and skip models that it has")
    parser.add_argument("--kind", choices=("causal", "family"), help="one part of the catalogue (default: both)")
    parser.add_argument("--runner", choices=RUNNERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _peers(text: str) -> list[str]:
    names = [] if text == "none" else text.split(",")
    if not {*names} <= {*RUNNERS[1:]}:
        raise argparse.ArgumentTypeError(f"a list of {', '.join(RUNNERS[1:])}, or none")
    return names


def _models(only: str | None) -> list[tuple[str, str]]:
    names = {"causal": catalogue.causal_models(), "family": list(catalogue.FAMILIES)}
    return [(kind, name) for kind in names if only in {None, kind} for name in names[kind]]


def _here(runner: str, models: list[tuple[str, str]], tp: int) -> Iterator[tuple[Key, FamilyResult]]:
    """Run models one after another, with ranks forked from this process."""
    if models:
        cases.preload(runner)
    for kind, name in models:
        begun = time.monotonic()
        if runner == "ours":
            case = partial(cases.ours, name=name, causal=kind == "causal", tp=tp)
            outcome = judge_ours(
                ranks.run(case, tp, TIMEOUT), partial(ranks.run, partial(case, double=True), tp, TIMEOUT)
            )
        else:
            outcome = _peer(partial(getattr(cases, runner), name=name, causal=kind == "causal", tp=tp), tp)
        seconds = time.monotonic() - begun
        sys.stderr.write(f"{runner:12} {kind} {name:26} {outcome.verdict.value} {outcome.words} ({seconds:.1f} s)\n")
        yield (runner, kind, name), outcome


def _peer(case: partial[dict[str, object]], tp: int) -> FamilyResult:
    """Judge a peer on a model with eager attention and experts, and if it fails with transformers' default ones."""
    outcome = judge_peer(ranks.run(case, tp, TIMEOUT))
    if outcome.verdict in {FamilyStatus.WRONG, FamilyStatus.REFUSED, FamilyStatus.ERROR, FamilyStatus.NOT_RUN}:
        outcome = better(outcome, judge_peer(ranks.run(partial(case, **cases.DEFAULTS), tp, TIMEOUT)))
    return outcome


def _elsewhere(models: list[tuple[str, str]], tp: int) -> Iterator[tuple[Key, FamilyResult]]:
    """Run the models with DeepSpeed, in its own interpreter."""
    python = os.environ.get("TPINIT_DEEPSPEED_PYTHON")
    if not python:
        sys.stderr.write("deepspeed    left out: TPINIT_DEEPSPEED_PYTHON is not set\n")
        return
    with tempfile.TemporaryDirectory(prefix="tpinit-sweep-") as folder:
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": folder}
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])
        for kind in ("causal", "family"):
            names = [name for its, name in models if its == kind]
            if not names:
                continue
            command = [python, "-m", "families.sweep", *names, "--tp", str(tp), "--kind", kind, "--runner", "deepspeed"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith("@"):
                        _, name, outcome = json.loads(line[1:])
                        yield ("deepspeed", kind, name), FamilyResult.of(outcome)
            if process.returncode:
                sys.stderr.write(f"deepspeed    ended with {process.returncode}\n")


def _saved(file: str | None) -> dict[Key, FamilyResult]:
    if not file or not Path(file).exists():
        return {}
    rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    return {(runner, kind, name): FamilyResult.of(outcome) for runner, kind, name, outcome in rows}


def _save(file: str | None, key: Key, outcome: FamilyResult) -> None:
    if file:
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([*key, outcome.as_dict()]) + "\n")


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    python = os.environ.get("TPINIT_DEEPSPEED_PYTHON")
    if python:
        code = "import importlib.metadata as m; print(m.version('deepspeed'))"
        printed = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        versions["deepspeed"] = printed.stdout.strip()
    return versions


if __name__ == "__main__":
    sys.exit(main())
