"""`tpinit checkpoint`: verifies a checkpoint, and writes its model in other layouts, without ranks."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

__all__ = ["add_arguments", "run"]

DESCRIPTION = """\
Read what engine.save_checkpoint wrote. FOLDER is a checkpoint, or a folder whose file 'latest' names one. No rank
is started, and nothing is unpickled.

  inspect      compare every file with its SHA-256, and show what the checkpoint holds
  consolidate  write the whole model as safetensors files, which transformers loads; needs memory for one tensor
  convert      write the model in another layout: tpinit's, a directory of transformers, or DeepSpeed's
               mp_rank_XX_model_states.pt of AutoTP; FOLDER may be any of the three"""

EPILOG = """\
examples:
  tpinit checkpoint inspect run
  tpinit checkpoint consolidate run/global_step120 model --model my-base-model
  tpinit checkpoint convert model run --to tpinit --dtype bf16
  tpinit checkpoint convert deepspeed-run model --to huggingface --model my-base-model
  tpinit checkpoint convert run deepspeed-run --to deepspeed --model my-base-model --tp-size 4

exit codes: 0 success, 1 the checkpoint is damaged or the output can't be written, 2 a usage error.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subcommand."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    inspect = actions.add_parser("inspect", help="verify a checkpoint and show what it holds")
    inspect.add_argument("folder", metavar="FOLDER", type=Path)
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    consolidate = actions.add_parser("consolidate", help="write the whole model as safetensors files")
    consolidate.add_argument("folder", metavar="FOLDER", type=Path)
    consolidate.add_argument("output", metavar="OUTPUT", type=Path, help="a new folder")
    consolidate.add_argument("--model", metavar="DIR", type=Path, help="copy config and tokenizer from here")
    consolidate.add_argument("--masters", action="store_true", help="write fp32 master copies where there are some")
    consolidate.add_argument("--shard-size", metavar="MB", type=_megabytes, help="of one file (default: 5000)")
    _add_convert(actions.add_parser("convert", help="write the model in another layout"))


def _add_convert(convert: argparse.ArgumentParser) -> None:
    convert.add_argument("folder", metavar="FOLDER", type=Path)
    convert.add_argument("output", metavar="OUTPUT", type=Path, help="a new folder")
    convert.add_argument("--to", required=True, choices=("tpinit", "huggingface", "deepspeed"), help="the layout")
    convert.add_argument("--model", metavar="DIR", type=Path, help="a directory of transformers: compare names and "
                         "shapes with its model, and copy its config and tokenizer")  # fmt: skip
    convert.add_argument("--tp-size", metavar="N", type=_size, help="for deepspeed: as 0.19.8 cuts for N ranks")
    convert.add_argument("--like", metavar="FOLDER", type=Path, help="for deepspeed: cut as in this checkpoint of it")
    convert.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), help="of the parameters (default: as they are)")
    convert.add_argument("--masters", action="store_true", help="from tpinit: take fp32 master copies, if any")
    convert.add_argument("--shard-size", metavar="MB", type=_megabytes, help="for huggingface: of one file")


def _size(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 1024:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of ranks from 1 to 1024")
    return int(text)


def _megabytes(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of megabytes from 1 on")
    return int(text) * 1_000_000


def run(arguments: argparse.Namespace) -> int:
    """Do what the options say and return the exit code."""
    from tpinit.runtime.checkpoint import offline  # torch is slow to import, and --help does not need it
    from tpinit.runtime.errors import CheckpointError, LoadError

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        if arguments.action == "inspect":
            page = offline.inspect(arguments.folder)
            print(json.dumps(page, indent=2) if arguments.json else _text(page))
        elif arguments.action == "convert":
            names = _convert(arguments)
            print(f"wrote {len(names)} file{'s' if len(names) > 1 else ''} to {arguments.output}")
        else:
            size = arguments.shard_size or offline.SHARD_BYTES
            names = offline.consolidate(arguments.folder, arguments.output, arguments.model, arguments.masters, size)
            print(f"wrote {len(names)} file{'s' if len(names) > 1 else ''} to {arguments.output}")
    except (CheckpointError, LoadError) as error:
        print(f"tpinit: error: {error}", file=sys.stderr)
        return 1
    return 0


def _convert(arguments: argparse.Namespace) -> list[str]:
    import torch
    from tpinit.runtime.checkpoint.convert import Conversion, convert
    from tpinit.runtime.checkpoint.safetensors_writer import SHARD_BYTES

    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, None: None}
    options = Conversion(
        arguments.to, arguments.model, arguments.tp_size, arguments.like, dtypes[arguments.dtype], arguments.masters,
        arguments.shard_size or SHARD_BYTES,
    )  # fmt: skip
    return convert(arguments.folder, arguments.output, options, print)


def _text(page: dict[str, Any]) -> str:
    topology, counters = page["topology"] or {}, page["counters"] or {}
    lines = [page["folder"], "  a converted model without states of an optimizer: pass load_module_only=True"]
    if not page["weights_only"]:
        lines[1:] = [
            f"  saved by   TP groups of {topology.get('tp_size')}, {topology.get('replicas')} replicas",
            f"  updates    {counters.get('global_steps')}, of which {counters.get('skipped_steps')} were skipped",
            f"  optimizer  {page['optimizer'] or 'none'}",
            f"  schedule   {page['scheduler'] or 'none'}",
        ]
    lines += [
        f"  {kind:<9}  {entry['tensors']} tensors, {entry['bytes'] / 1e6:.1f} MB, {', '.join(entry['dtypes'])}"
        for kind, entry in page["tensors"].items()
    ]
    lines.append(f"  files      {len(page['files'])}, {sum(page['files'].values()) / 1e6:.1f} MB: all sums are right")
    return "\n".join(lines)
