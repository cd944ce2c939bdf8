"""Prove the training step of every causal language model of the catalogue, sharded by tpinit, and write the page.

    PYTHONPATH=tests python -m families.step_sweep [NAME ...] [--tp 2] [--results FILE] [--document docs/step-models.md]

Each model is recorded whole and on real ranks, then lifted: see docs/step-proofs.md. Prints a line for each; the exit
code is 1 if one fails other than by being stuck or refused. `--results FILE` saves each and skips those it has.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from families import cases, catalogue, ranks

TIMEOUT = 180.0  # seconds a model
CLIPPING = 1.0


@dataclass(frozen=True, slots=True)
class StepEnd:
    """How a model ended: `verdict` is proven, stuck, refused (by the plan) or error.

    `results` are those of the step, `open` how many of them are not proven, `where` the operation and line at which the
    first is stuck, and `seconds` the time to lift.
    """

    model: str
    verdict: str
    results: int = 0
    open: int = 0
    operations: int = 0
    reason: str = ""
    where: str = ""
    seconds: float = 0.0


def main() -> int:
    """Run the sweep; return the exit code."""
    options = _options()
    cases.preload("ours")
    found = _saved(options.results)
    for name in options.names or catalogue.causal_models():
        if name not in found:
            found[name] = prove(name, options.tp)
            if options.results:
                with Path(options.results).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(found[name])) + "\n")
        end = found[name]
        sys.stderr.write(f"{name:26} {end.verdict} {end.reason} {end.where} ({end.seconds:.1f} s)\n")
    if options.document:
        Path(options.document).write_text(page(found.values(), options.tp), encoding="utf-8")
    return int(any(end.verdict == "error" for end in found.values()))


def prove(name: str, tp: int, sequence_parallel: bool = False) -> StepEnd:
    """Record one model whole and on `tp` forked ranks, and prove its step."""
    from tpinit.runtime.recording import record_whole
    from tpinit.step.graph import from_json
    from tpinit.step.lift import ShardClaim
    from tpinit.step.verdict import prove_step

    ends = ranks.run(partial(_rank, name=name, tp=tp, sequence_parallel=sequence_parallel), tp, TIMEOUT)
    failure = ranks.failure(ends)
    if failure is not None:
        verdict = "refused" if "PlanError" in failure.kinds else "error"
        return StepEnd(name, verdict, reason=failure.text.strip().splitlines()[0][:160])
    model = cases.build(name, True)
    whole = record_whole(model, batch(name, model), CLIPPING)
    claims = {one["name"]: ShardClaim.of_pieces(one["shape"], one["dim"], one["pieces"]) for one in ends[0].value[1]}
    began = time.monotonic()
    verdict = prove_step(whole, [from_json(end.value[0]) for end in ends], claims)
    seconds = round(time.monotonic() - began, 2)
    stuck = [result for result in verdict.results if not result.proven]
    first = next((result for result in stuck if result.op is not None), stuck[0] if stuck else None)
    where = f"{first.op.name} at {first.op.place.line}" if first is not None and first.op is not None else ""
    reason = first.reason if first is not None else ""
    kind = "stuck" if stuck else "proven"
    return StepEnd(name, kind, len(verdict.results), len(stuck), verdict.operations, reason, where, seconds)


def batch(name: str, model: Any) -> dict[str, Any]:
    """Return the batch of a model of the catalogue."""
    from families.causal import batch_causal

    return batch_causal(name, model, 0)


def _rank(rank: int, name: str, tp: int, sequence_parallel: bool) -> tuple[str, list[dict[str, Any]]]:
    """Record one rank; return its graph as JSON, and the layouts that its plan claims."""
    from tpinit.runtime import initialize
    from tpinit.runtime.recording import record_rank
    from tpinit.step.graph import to_json

    data = batch(name, cases.build(name, True))
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": CLIPPING,
        "tensor_parallel": {"autotp_size": tp},
    }
    options = {"sequence_parallel": sequence_parallel, "simulated": False}
    graph, claims = record_rank(initialize, partial(cases.build, name, True), data, config, rank, tp, **options)
    return to_json(graph), [asdict(one) for one in claims]


def page(ends: Iterable[StepEnd], tp: int) -> str:
    """Return the page: counts, and a row for each model that is not proven."""
    every = list(ends)
    proven = [end for end in every if end.verdict == "proven"]
    trained = [end for end in every if end.verdict != "refused"]
    lines = [
        "# Proven steps of the causal language models",
        "",
        "Written by `PYTHONPATH=tests python -m families.step_sweep --document docs/step-models.md`. Do not edit.",
        "",
        f"Small models of {len(every)} types, {tp} ranks, eager attention and experts. The plan refuses "
        f"{len(every) - len(trained)}; of the other {len(trained)}, the whole training step of {len(proven)} is proven "
        "([step proofs](step-proofs.md)): the loss, the clipping norm, and for each parameter the gradient, the update "
        "and the states of AdamW. A stuck step lacks a rule; it is neither right nor wrong for that.",
        "",
        "| model | verdict | results | not proven | where | why |",
        "|---|---|---|---|---|---|",
    ]
    for end in sorted(every, key=lambda one: (one.verdict == "proven", one.model)):
        words = " | ".join(text.replace("|", "/").replace("\n", " ") for text in (end.where, end.reason))
        lines.append(f"| {end.model} | {end.verdict} | {end.results or ''} | {end.open or ''} | {words} |")
    return "\n".join(lines) + "\n"


def _saved(path: str | None) -> dict[str, StepEnd]:
    if path is None or not Path(path).exists():
        return {}
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return {row["model"]: StepEnd(**row) for row in rows}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prove the training step of every causal model of the catalogue.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models (default: all)")
    parser.add_argument("--tp", type=int, default=2, help="ranks (default: 2)")
    parser.add_argument("--results", help="save results in this file of JSON lines, and skip models that it has")
    parser.add_argument("--document", help="write the page to this file")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
