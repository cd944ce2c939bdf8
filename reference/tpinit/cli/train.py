"""`tpinit train`: fine-tunes a model on lines of text, or compares a small sharded Llama with the same model whole."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from typing import Any

from tpinit.cli.train_beside import beside_config, train_beside
from tpinit.cli.train_launch import die_with_launcher, launch
from tpinit.cli.train_tune import check_tune, compare_sizes, processes_of, tune_options
from tpinit.cli.usage import UsageError

__all__ = ["add_arguments", "run"]

DESCRIPTION = """\
With --model, --data and --output: fine-tune a transformers directory on the lines of a JSONL file, on any number of
ranks, and write a transformers directory. The config gives batch sizes, optimizer, schedule, precision and clipping.
The same command goes on with the run where it was interrupted.

Without them: train a small Llama with random weights, sharded over real processes, and the same model unsharded, on
the same data. Print the decision, the plan, and both losses of every step; fail if the losses differ.

Without torchrun the command starts its own processes on this machine (with nccl if there is CUDA, else gloo). Under
torchrun it is one of the ranks:

  torchrun --nproc-per-node 4 -m tpinit.cli.main train --tp-size 2"""

EPILOG = """\
A line of --data is an object with one of these; blank lines are skipped, other keys are counted and not read:
  {"text": "..."}                          trained on whole
  {"prompt": "...", "completion": "..."}   trained on the completion; a question and its answer if the tokenizer has
                                           a chat template, else two parts of one text
  {"messages": [{"role": "user", "content": "..."}, ...]}   trained on the assistant's; needs a chat template. prompt
                                           and completion may both be such lists

Without --config the section is {"autotp_size": NPROC}. With --tp-size the size is that of a call of tp_model_init;
the call and the config are merged by the contract. "auto" in the config is filled in, and said.

examples:
  tpinit train
  tpinit train --nproc 4 --tp-size 2 --steps 10
  tpinit train --config ds_config.json --tp-size 2 --dtype bf16
  tpinit train --model my-llama --config ds.json --data lines.jsonl --output tuned --nproc 4 --epochs 3
  tpinit train --model my-llama --data lines.jsonl --output runs --compare-tp 1,2,4 --steps 50

exit codes: 0 success or equal, 1 the losses differ, the inputs violate the contract or a rank failed, 2 the inputs
can't be read, 130 and 143 ended by Ctrl-C or SIGTERM, after a checkpoint.
"""


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def _count_or_0(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 0")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _sizes(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) >= 1 for part in parts) or len(set(parts)) < max(2, len(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of two or more different sizes, such as 1,2,4")
    return [int(part) for part in parts]


_OPTIONS: dict[str, dict[str, Any]] = {
    "--config": {"metavar": "FILE", "help": "a DeepSpeed config (default: a section and AdamW)"},
    "--nproc": {"type": _count, "metavar": "N", "help": "processes to start (default: the TP size if given, else 2)"},
    "--tp-size": {"type": int, "metavar": "N", "help": "ranks in a TP group, as tp_model_init says it"},
    "--dtype": {
        "choices": ("fp32", "bf16", "fp16"),
        "help": "dtype of the parameters, with --tp-size (default: that of the config, else fp32)",
    },
    "--steps": {"type": _count, "metavar": "N", "help": "optimizer steps (default: 5 without --model, else --epochs)"},
}
"""The options of both uses."""

_TUNING: dict[str, dict[str, Any]] = {
    "--model": {"metavar": "DIR", "help": "what save_pretrained of a causal model and its tokenizer wrote"},
    "--data": {"metavar": "FILE", "help": "a JSONL file, one object a line: see below"},
    "--output": {"metavar": "DIR", "help": "a new folder, or that of the run to go on with"},
    "--epochs": {"type": _count, "metavar": "N", "help": "passes over the data (default: 1)"},
    "--length": {
        "type": _count,
        "metavar": "N",
        "help": "tokens of a row (default: the model's, at most 1024)",
    },
    "--pack": {"action": "store_true", "help": "put lines behind one another in rows of --length tokens"},
    "--loss-on": {
        "choices": ("answers", "all"),
        "help": "train on completions and the assistant's messages, or on all tokens (default: answers)",
    },
    "--lr": {"type": _rate, "metavar": "X", "help": "where the config says auto or has no optimizer (default: 5e-5)"},
    "--warmup": {
        "type": _count_or_0,
        "metavar": "N",
        "help": "warm-up updates, where the config has none or auto (default: 0)",
    },
    "--micro-batch": {
        "type": _count,
        "metavar": "N",
        "help": "rows in a forward of a rank, where the config leaves it out (default: 1)",
    },
    "--seed": {"type": _count_or_0, "metavar": "N", "help": "of the order of the rows and of dropout (default: 0)"},
    "--save-every": {
        "type": _count_or_0,
        "metavar": "N",
        "help": "save a checkpoint after every N updates and the last one; 0: after the last one (default: 100)",
    },
    "--keep-last": {"type": _count, "metavar": "N", "help": "checkpoints to keep (default: 2)"},
    "--log-every": {
        "type": _count,
        "metavar": "N",
        "help": "updates to a line if stdout is no terminal (default: 10)",
    },
    "--resume": {"action": "store_true", "help": "fail if --output has no checkpoint to go on with"},
    "--fresh": {"action": "store_true", "help": "begin anew, and remove the checkpoints and metrics in --output"},
    "--sequence-parallel": {"action": "store_true", "help": "shard the tokens between the layers too"},
    "--tensorboard": {"action": "store_true", "help": "also write OUTPUT/tensorboard; needs the package tensorboard"},
    "--compare-tp": {
        "type": _sizes,
        "metavar": "LIST",
        "help": "train once with each TP size into OUTPUT/tpN, draw OUTPUT/loss.svg, fail if the losses differ",
    },
}
"""The options that need --model."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subcommand."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    for option, settings in _OPTIONS.items():
        parser.add_argument(option, **settings)
    tuning = parser.add_argument_group("fine-tuning")
    for option, settings in _TUNING.items():
        tuning.add_argument(option, **settings)


def run(arguments: argparse.Namespace) -> int:
    """Train, in this process if it is a rank already, else in new processes. Return the exit code."""
    _check_usage(arguments)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _rank(arguments)
    if arguments.compare_tp is not None:
        return compare_sizes(arguments, lambda one: launch(_command_line(one), one.nproc))
    if arguments.model is not None:
        arguments.nproc = processes_of(arguments)
        return check_tune(arguments) or launch(_command_line(arguments), arguments.nproc)
    arguments.nproc = arguments.nproc or 2
    return _check(arguments) or launch(_command_line(arguments), arguments.nproc)


def _check_usage(arguments: argparse.Namespace) -> None:
    in_call = arguments.tp_size is not None or arguments.compare_tp is not None
    if arguments.config is not None and arguments.dtype is not None and not in_call:
        raise UsageError("--dtype is an argument of the call. fix: give --tp-size too, or set the dtype in the config")
    given = [option for option in _TUNING if getattr(arguments, _name(option)) not in (None, False)]
    missing = [option for option in ("--model", "--data", "--output") if option not in given]
    if given and missing:
        raise UsageError(f"{given[0]} needs {' and '.join(missing)}. fix: give --model, --data and --output")
    if arguments.resume and arguments.fresh:
        raise UsageError("--resume goes on with a run, and --fresh begins anew. fix: give one of them")
    if arguments.compare_tp is not None:
        for option in ("--nproc", "--tp-size"):
            if getattr(arguments, _name(option)) is not None:
                raise UsageError(f"--compare-tp sets {option}: as many ranks as the TP size. fix: leave {option} out")
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            raise UsageError("--compare-tp starts runs of several sizes. fix: call it without torchrun")


def _name(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _command_line(arguments: argparse.Namespace) -> list[str]:
    """Return the options of a rank."""
    words: list[str] = []
    for option in [*_OPTIONS, *_TUNING]:
        value = getattr(arguments, _name(option))
        if option in ("--nproc", "--compare-tp") or value is None or value is False:
            continue
        words += [option] if value is True else [option, str(value)]
    return words


def _check(arguments: argparse.Namespace) -> int:
    """Return 0 for inputs that give a decision; else print the error and return 1. Raises UsageError.

    The ranks would raise the same errors, but seconds later, when they have started.
    """
    from tpinit.reference.errors import ConfigError, DecisionError
    from tpinit.reference.objects import CallArgs, Resolver

    call = None if arguments.tp_size is None else CallArgs(arguments.tp_size, arguments.dtype or "fp32")
    try:
        decision = Resolver(arguments.nproc).resolve(call=call, config=beside_config(arguments, arguments.nproc))
    except ConfigError as error:
        raise UsageError(str(error)) from None
    if decision.violations:
        print(f"tpinit: error: {DecisionError(decision)}", file=sys.stderr)
        return 1
    return 0


def _rank(arguments: argparse.Namespace) -> int:
    """Run one rank. Only rank 0 prints, and its exit code is that of the command."""
    import torch.distributed as dist
    from tpinit.reference.errors import ConfigError, TpinitError
    from tpinit.runtime.errors import DataError

    die_with_launcher()
    first = os.environ["RANK"] == "0"
    if not first:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for as long as the process lives
    try:
        if arguments.model is None:
            arguments.steps = arguments.steps or 5
            return train_beside(arguments)
        from tpinit.runtime.finetune.tune import tune

        return tune(tune_options(arguments, int(os.environ["WORLD_SIZE"])))
    except TpinitError as error:
        if first:
            print(f"tpinit: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, (ConfigError, DataError)) else 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        # The groups that the engine and its layers held end with their threads: a thread of gloo that drops a tensor
        # while the interpreter ends aborts the process.
        gc.collect()
