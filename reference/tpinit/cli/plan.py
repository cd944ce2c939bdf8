"""`tpinit plan`: forecasts a run on any number of ranks: its plan, collectives and memory."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpinit.cli.usage import UsageError

if TYPE_CHECKING:
    from tpinit.reference.config import ConfigReading
    from tpinit.spec.vocabulary import Decision

__all__ = ["add_arguments", "run"]

DESCRIPTION = """\
Forecast what initialize() will do with a transformers model: the decision, the groups of ranks, how every
parameter is sharded, the collectives of a step with their bytes, and the memory of each rank. The model is built on
the meta device: no weight is allocated, whatever the size of the model, and no rank is started."""

EPILOG = """\
MODEL is a directory with a config.json, or such a file; no weights are read. Bytes on the wire are those that one
rank sends if a collective runs as a ring. Memory is that of parameters, gradients, fp32 master weights and optimizer
states; activations depend on the kernels and are not counted.

examples:
  tpinit plan --model ./llama --config ds_config.json --world 8
  tpinit plan --model ./llama-405b --config ds_config.json --tp-size 8 --dtype bf16 --world 16384
  tpinit plan --model config.json --config ds_config.json --world 64 --html plan.html

exit codes: 0 planned, 1 the inputs violate the contract or the model can't be sharded so, 2 the inputs can't be
read.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the subcommand and its arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--model", metavar="MODEL", required=True, help="a config.json, or its directory")
    parser.add_argument("--config", metavar="FILE", help="a DeepSpeed config (default: none)")
    parser.add_argument("--tp-size", type=int, metavar="N", help="call tp_model_init with this size")
    parser.add_argument("--dtype", metavar="DTYPE", help="its dtype: fp32, fp16, bf16 (default with --tp-size: bf16)")
    parser.add_argument("--world", type=_count, metavar="N", help="the number of ranks (default: $WORLD_SIZE)")
    parser.add_argument("--sequence", type=_count, metavar="N", help="tokens in a sample (default: at most 4096)")
    parser.add_argument("--layers", type=_count, metavar="N", help="number of layers, in place of the model's own")
    parser.add_argument("--sequence-parallel", action="store_true", help="shard the tokens between layers too")
    parser.add_argument("--json", action="store_true", help="print the forecast as a JSON object")
    parser.add_argument(
        "--html", metavar="FILE", help="write the forecast as a page with a picture of every sharded parameter"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not an integer of at least 1")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Print the forecast; return 1 if the decision is an error or the model can't be sharded so.

    Raises UsageError for malformed input.
    """
    from tpinit.cli.plan_text import text_of
    from tpinit.reference.errors import ConfigError, DecisionError, TpinitError
    from tpinit.reference.explain import explain, to_json

    try:
        decision, reading = _decide(arguments)
        if decision.violations:
            raise DecisionError(decision)
        forecast = _forecast(arguments, decision, reading)
    except ConfigError as error:
        raise UsageError(str(error)) from error
    except TpinitError as error:
        print(f"tpinit: error: {error}", file=sys.stderr)
        return 1
    page: dict[str, Any] = {"decision": to_json(decision), **forecast}
    if arguments.html is not None:
        from tpinit.cli.plan_page import page_of

        try:
            Path(arguments.html).write_text(page_of(page, explain(decision)), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--html {arguments.html} can't be written: {error.strerror}") from error
    print(json.dumps(page, indent=2) if arguments.json else text_of(page, explain(decision)))
    return 0


def _decide(arguments: argparse.Namespace) -> tuple[Decision, ConfigReading]:
    """Return the decision and the config that it is for. Raises ConfigError and UsageError for malformed input."""
    from tpinit.reference.config import read_config
    from tpinit.reference.objects import CallArgs, Resolver

    world = arguments.world if arguments.world is not None else _environment()
    if arguments.dtype is not None and arguments.tp_size is None:
        raise UsageError("--dtype is an argument of the call. fix: give --tp-size too, or set the dtype in the config")
    call = None if arguments.tp_size is None else CallArgs(arguments.tp_size, arguments.dtype or "bf16")
    resolver = Resolver(world)
    reading = read_config(arguments.config, groups=resolver.groups)
    return resolver.resolve(call=call, config=reading), reading


def _forecast(arguments: argparse.Namespace, decision: Decision, reading: ConfigReading) -> dict[str, Any]:
    """Return the forecast as data. Raises UsageError for a model that can't be read, TpinitError for one refused."""
    from tpinit.runtime.errors import LoadError
    from tpinit.runtime.forecast.preview import forecast, read_model_config

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        return forecast(
            read_model_config(Path(arguments.model)),
            decision,
            reading,
            arguments.sequence,
            arguments.layers,
            arguments.sequence_parallel,
        )
    except LoadError as error:
        raise UsageError(str(error)) from error


def _environment() -> int:
    text = os.environ.get("WORLD_SIZE", "")
    if not text.isdecimal() or int(text) < 1:
        raise UsageError("--world is missing: the plan depends on the number of ranks. fix: add --world N")
    return int(text)
