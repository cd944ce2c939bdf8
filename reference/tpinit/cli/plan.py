"""`tpinit plan`: what a run will be on any number of ranks, before any of them is paid for."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpinit.cli.usage import UsageError

__all__ = ["add_arguments", "run"]

DESCRIPTION = """\
Say what initialize() will make of a transformers model: the decision, how the ranks lie, how every parameter is
cut, the collectives and bytes of a step, and the memory of each rank. Only shapes are worked with: nothing of the
model is allocated, whatever its size, and no rank is started."""

EPILOG = """\
MODEL is a directory with a config.json, or such a file; no weights are read. Bytes on the wire are those that a
rank sends when a collective runs as a ring. Memory is that of parameters, gradients, fp32 masters and optimizer
states; activations depend on the kernels and are not counted.

examples:
  tpinit plan --model ./llama --config ds_config.json --world 8
  tpinit plan --model ./llama-405b --config ds_config.json --tp-size 8 --dtype bf16 --world 16384
  tpinit plan --model config.json --config ds_config.json --world 64 --html plan.html

exit codes: 0 planned, 1 the inputs violate the contract or the model can't be cut so, 2 the inputs can't be read.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the subcommand and its arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--model", metavar="MODEL", required=True, help="a config.json, or the directory that has it")
    parser.add_argument("--config", metavar="FILE", help="a DeepSpeed config (default: none)")
    parser.add_argument("--tp-size", type=int, metavar="N", help="call tp_model_init with this size")
    parser.add_argument("--dtype", metavar="DTYPE", help="its dtype: fp32, fp16, bf16 (default with --tp-size: bf16)")
    parser.add_argument("--world", type=_count, metavar="N", help="how many ranks (default: $WORLD_SIZE)")
    parser.add_argument("--sequence", type=_count, metavar="N", help="tokens in a sample (default: at most 4096)")
    parser.add_argument("--layers", type=_count, metavar="N", help="layers in place of the model's own number")
    parser.add_argument("--sequence-parallel", action="store_true", help="cut the tokens between layers too")
    parser.add_argument("--json", action="store_true", help="print it as a JSON object")
    parser.add_argument("--html", metavar="FILE", help="write it as a page, with a picture of every cut")


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not an integer of at least 1")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Print the forecast; return 1 where the contract or the model says no. Raises UsageError for malformed input."""
    from tpinit.reference.config import read_config
    from tpinit.reference.errors import ConfigError, DecisionError, TpinitError
    from tpinit.reference.explain import explain, to_json
    from tpinit.reference.objects import CallArgs, Resolver

    world = arguments.world if arguments.world is not None else _environment()
    if arguments.dtype is not None and arguments.tp_size is None:
        raise UsageError("--dtype is an argument of the call. fix: give --tp-size as well, or set it in the config")
    call = None if arguments.tp_size is None else CallArgs(arguments.tp_size, arguments.dtype or "bf16")
    try:
        resolver = Resolver(world)
        reading = read_config(arguments.config, groups=resolver.groups)
        decision = resolver.resolve(call=call, config=reading)
    except ConfigError as error:
        raise UsageError(str(error)) from error
    if decision.violations:
        print(f"tpinit: error: {DecisionError(decision)}", file=sys.stderr)
        return 1
    from tpinit.runtime.errors import LoadError
    from tpinit.runtime.forecast.preview import forecast, read_model_config

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        found = forecast(
            read_model_config(Path(arguments.model)),
            decision,
            reading,
            arguments.sequence,
            arguments.layers,
            arguments.sequence_parallel,
        )
    except (LoadError, ConfigError) as error:
        raise UsageError(str(error)) from error
    except TpinitError as error:
        print(f"tpinit: error: {error}", file=sys.stderr)
        return 1
    page: dict[str, Any] = {"decision": to_json(decision), **found}
    if arguments.html is not None:
        from tpinit.cli.plan_page import page_of

        try:
            Path(arguments.html).write_text(page_of(page, explain(decision)), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--html {arguments.html} can't be written: {error.strerror}") from error
    print(json.dumps(page, indent=2) if arguments.json else _text(page, explain(decision)))
    return 0


def _environment() -> int:
    text = os.environ.get("WORLD_SIZE", "")
    if not text.isdecimal() or int(text) < 1:
        raise UsageError("--world is missing: what is planned depends on how many ranks there are. fix: add --world N")
    return int(text)


# --- words -----------------------------------------------------------------------------------------------


def _text(page: dict[str, Any], decision: str) -> str:
    model = page["model"]
    known = f"{model['class']}, {model['parameters']:,} numbers; {model['source_of_plan']}"
    parts = [
        f"decision\n\n{_indented(decision)}",
        f"ranks\n\n{_indented(_ranks(page['ranks']))}",
        f"parameters ({known})\n\n{_indented(_parameters(page['parameters']))}",
        f"collectives ({_batch(page['batch'])})\n\n{_indented(_collectives(page['collectives']))}",
        f"memory of a rank, without activations\n\n{_indented(_memory(page['memory']))}",
        f"whole on every rank\n\n{_indented(_replicated(page['replicated']))}",
    ]
    parts += ["warnings\n\n" + _indented("\n".join(page["notes"]))] if page["notes"] else []
    return "\n\n".join(parts)


def _batch(batch: dict[str, Any]) -> str:
    return f"micro batch {batch['micro']} x {batch['sequence']} tokens, {batch['accumulation']} a step"


def _ranks(ranks: dict[str, Any]) -> str:
    lines = [
        f"{ranks['world']} ranks: {ranks['dp_size']} groups of {ranks['tp_size']} that shard; {ranks['rule']}",
        "",
    ]
    rows = [("dp rank", "ranks, by tp rank")]
    left_out = ranks["tp_groups_left_out"]
    for place, group in enumerate(ranks["tp_groups"]):
        if left_out and place and group["dp_rank"] != ranks["tp_groups"][place - 1]["dp_rank"] + 1:
            rows.append(("...", f"{left_out} more"))
        rows.append((str(group["dp_rank"]), shortened(group["ranks"])))
    return "\n".join(lines) + table(rows)


def _parameters(parameters: list[dict[str, Any]]) -> str:
    rows = [("parameter", "count", "shape", "cut", "on rank 0", "on the last", "bytes a rank", "gradients")]
    rows += [
        (
            one["name"],
            str(one["count"]),
            shape(one["shape"]),
            one["cut"] if one["dim"] is None else f"{one['cut']}, dim {one['dim']}",
            shape(one["local_shapes"][0]),
            shape(one["local_shapes"][-1]),
            size(max(one["local_bytes"])),
            one["gradients"],
        )
        for one in parameters
    ]
    return table(rows)


def _collectives(found: dict[str, Any]) -> str:
    rows = [("where", "calls", "when", "what", "over", "largest", "all of them", "on the wire")]
    rows += [
        (
            one["module"],
            str(one["calls"]),
            one["phase"],
            one["kind"],
            one["group"],
            size(one["largest_bytes"]),
            size(one["bytes"]),
            size(one["wire_bytes"]),
        )
        for one in found["each"]
    ]
    return table(rows) + "\n\n" + "\n".join(sums(found))


def sums(found: dict[str, Any]) -> list[str]:
    """Return the sums of the collectives in words."""
    return [
        f"{words}: {found[name]['calls']} collectives, {size(found[name]['bytes'])}, "
        f"on the wire {size(found[name]['wire_bytes'])}"
        for name, words in (("per_micro_batch", "forward and backward"), ("per_step", "a step, update included"))
    ]


def _memory(memory: list[dict[str, Any]]) -> str:
    kinds = ("parameters", "gradients", "masters", "optimizer", "total")
    rows: list[tuple[str, ...]] = [("tp rank", *kinds)]
    alike: dict[tuple[int, ...], list[int]] = {}
    for one in memory:
        alike.setdefault(tuple(one[kind] for kind in kinds), []).append(one["tp_rank"])
    rows += [(shortened(ranks), *(size(one) for one in sizes)) for sizes, ranks in alike.items()]
    return table(rows)


def _replicated(found: dict[str, Any]) -> str:
    lines = [f"{found['parameters']} parameters, {size(found['bytes'])}"]
    return "\n".join([*lines, *(f"{size(held)}: {reason}" for reason, held in found["reasons"].items())])


def shortened(ranks: list[int]) -> str:
    """Return a list of ranks in short: runs by their ends."""
    if len(ranks) > 2 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    return ", ".join(map(str, ranks))


def shape(lengths: list[int]) -> str:
    """Return a shape in words."""
    return " x ".join(map(str, lengths)) or "scalar"


def size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows as lines of aligned columns, the first row over a rule."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
