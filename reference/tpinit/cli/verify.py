"""`tpinit verify`: proves that a model's sharded training step is the whole one, at small widths."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpinit.cli.usage import UsageError

if TYPE_CHECKING:
    from tpinit.step.verdict import StepResult, StepVerdict

__all__ = ["add_arguments", "run"]

DESCRIPTION = """\
Prove that a training step of a transformers model over the ranks of a TP group is that of the whole model: the loss,
every gradient, the clipping norm, the updated parameters and the states of the optimizer, for all values of parameters,
states and batch, in real numbers. A step of a small model with the structure of the given one is recorded, of the whole
model and of each rank, in this process; no weights are read. docs/step-proofs.md says what is proven and assumed."""

EPILOG = """\
MODEL is a directory with a config.json, or such a file. What is not proven is not wrong: it may lack a rule, and the
operation where the proof is stuck is named.

examples:
  tpinit verify --model ./llama --config ds_config.json --tp-size 4
  tpinit verify --model config.json --config ds_config.json --tp-size 3 --sequence-parallel --attention sdpa

exit codes: 0 proven, 1 not proven, or the model or config is refused, 2 the inputs can't be read.
"""

_PLACES = 5  # of those where the proof is stuck


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the subcommand and its arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--model", metavar="MODEL", required=True, help="a config.json, or its directory")
    parser.add_argument("--config", metavar="FILE", help="a DeepSpeed config (default: none)")
    parser.add_argument("--tp-size", type=_count, metavar="N", required=True, help="the number of ranks in a TP group")
    parser.add_argument("--sequence-parallel", action="store_true", help="shard the tokens between layers too")
    parser.add_argument("--layers", type=_count, default=2, metavar="N", help="number of layers (default: 2)")
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="eager", help="(default: eager)")
    parser.add_argument("--json", action="store_true", help="print the verdict as a JSON object")


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 4 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not an integer from 1 to 9999")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Print the verdict; return 1 if the step is not proven, or the model or the config is refused.

    Raises UsageError for malformed input.
    """
    from tpinit.reference.errors import ConfigError, TpinitError

    start = time.perf_counter()
    try:
        verdict = _verify(arguments)
    except ConfigError as error:
        raise UsageError(str(error)) from error
    except TpinitError as error:
        print(f"tpinit: error: {error}", file=sys.stderr)
        return 1
    page = _page(verdict, time.perf_counter() - start)
    print(json.dumps(page, indent=2) if arguments.json else _text(page))
    return 0 if verdict.proven else 1


def _verify(arguments: argparse.Namespace) -> StepVerdict:
    """Return the verdict. Raises UsageError for a model that can't be read, TpinitError for one that is refused."""
    import logging
    import warnings

    from tpinit.runtime.errors import LoadError
    from tpinit.runtime.forecast.preview import read_model_config
    from tpinit.runtime.init.verify_config import verify_config

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.getLogger("tpinit").setLevel(logging.ERROR)  # every simulated rank would repeat the notes of its plan
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return verify_config(
                read_model_config(Path(arguments.model)),
                arguments.config,
                arguments.tp_size,
                layers=arguments.layers,
                attention=arguments.attention,
                sequence_parallel=arguments.sequence_parallel,
            )
    except LoadError as error:
        raise UsageError(str(error)) from error


def _page(verdict: StepVerdict, seconds: float) -> dict[str, Any]:
    """Return a verdict as data for JSON."""
    return {
        "proven": verdict.proven,
        "results": {"proven": sum(one.proven for one in verdict.results), "all": len(verdict.results)},
        "groups": _groups(verdict.results),
        "stuck": _stuck(verdict.results),
        "assumptions": list(verdict.assumptions),
        "operations": verdict.operations,
        "seconds": round(seconds, 2),
    }


def _groups(results: tuple[StepResult, ...]) -> list[dict[str, Any]]:
    """Return one row for each loss or norm, and for the parameters whose names differ in numbers alone.

    A row has for each kind of result (gradient, update, a state) whether all of them are proven.
    """
    rows: dict[str, dict[str, list[bool]]] = {}
    for one in results:
        kind, name = _kind_and_name(one.name)
        rows.setdefault(re.sub(r"\d+", "*", name), {}).setdefault(kind, []).append(one.proven)
    return [
        {
            "name": name,
            "parameters": max(map(len, kinds.values())),
            "proven": {kind: all(each) for kind, each in kinds.items()},
        }
        for name, kinds in rows.items()
    ]


def _kind_and_name(result: str) -> tuple[str, str]:
    """Return what a result is ("gradient", "update", "state exp_avg", ...) and of which parameter."""
    kind, _, name = result.partition(" ")
    if kind == "state":
        state, _, parameter = name.partition(":")
        return f"state {state}", parameter
    return {"grad": "gradient", "parameter": "update"}.get(kind, "value"), name or kind


def _stuck(results: tuple[StepResult, ...]) -> list[dict[str, Any]]:
    """Return the first places where the proof is stuck, each once, with the number of results that need it."""
    found: dict[Any, dict[str, Any]] = {}
    for one in results:
        if one.proven:
            continue
        place = one.op.place if one.op is not None else None
        row = {
            "result": one.name,
            "reason": one.reason,
            "op": one.op.name if one.op is not None else None,
            "module": place.module if place is not None else None,
            "line": place.line if place is not None else None,
            "phase": place.phase if place is not None else None,
            "results": 0,
        }
        found.setdefault((one.reason, row["op"], place), row)["results"] += 1
    return sorted(found.values(), key=lambda row: -row["results"])[:_PLACES]


def _text(page: dict[str, Any]) -> str:
    count = page["results"]
    head = "proven" if page["proven"] else "NOT PROVEN"
    lines = [f"{head}: {count['proven']} of {count['all']} results of a training step"]
    width = max(len(row["name"]) for row in page["groups"])
    for row in page["groups"]:
        kinds = ", ".join(f"{kind} {'proven' if proven else 'NOT PROVEN'}" for kind, proven in row["proven"].items())
        lines.append(f"  {row['name']:{width}}  {row['parameters']:4} x  {kinds}")
    if page["stuck"]:
        lines.append("stuck at")
    for row in page["stuck"]:
        where = (
            f"{row['op']} at {row['line']} in {row['module'] or 'the step'} ({row['phase']})"
            if row["op"]
            else row["result"]
        )
        lines.append(f"  {where}: {row['reason']}; {row['results']} results need it")
    lines.append("assumed")
    lines += [f"  {one}" for one in page["assumptions"]]
    lines.append(f"{page['operations']} operations of a rank in {page['seconds']:.1f} s")
    return "\n".join(lines)
