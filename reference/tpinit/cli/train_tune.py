"""The fine-tuning of `tpinit train`: its options, checked before a rank starts, and the comparison of TP sizes."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpinit.cli.usage import UsageError

if TYPE_CHECKING:
    from tpinit.runtime.finetune.options import TuneOptions

__all__ = ["check_tune", "compare_sizes", "processes_of", "tune_options"]

_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 5e-2}
"""Relative, on the loss of an update: sums in another order, carried on through all updates before it."""


def processes_of(arguments: argparse.Namespace) -> int:
    """Return how many ranks to start: --nproc, else --tp-size, else the size in the config, else 2."""
    from tpinit.reference.config import read_config
    from tpinit.reference.errors import ConfigError

    if arguments.nproc is not None or arguments.tp_size is not None:
        return int(arguments.nproc or max(1, arguments.tp_size))
    try:
        section = read_config(arguments.config).section
    except ConfigError as error:
        raise UsageError(str(error)) from None
    given = (section.autotp_size or section.tp_size) if section is not None else None
    return given or 2


def tune_options(arguments: argparse.Namespace, ranks: int) -> TuneOptions:
    """Return the options as the ranks take them. Raises ConfigError, and DecisionError for a violation."""
    from tpinit.runtime.finetune.options import TuneOptions

    given = {
        "steps": arguments.steps,
        "epochs": arguments.epochs,
        "length": arguments.length,
        "lr": arguments.lr,
        "warmup": arguments.warmup,
        "micro": arguments.micro_batch,
        "seed": arguments.seed,
        "save_every": arguments.save_every,
        "keep_last": arguments.keep_last,
        "log_every": arguments.log_every,
    }
    return TuneOptions(
        model=Path(arguments.model),
        data=Path(arguments.data),
        output=Path(arguments.output),
        config=_decided(arguments, ranks),
        pack=arguments.pack,
        everything=arguments.loss_on == "all",
        resume=arguments.resume,
        fresh=arguments.fresh,
        tensorboard=arguments.tensorboard,
        sequence_parallel=arguments.sequence_parallel,
        **{name: value for name, value in given.items() if value is not None},
    )


def _decided(arguments: argparse.Namespace, ranks: int) -> dict[str, object]:
    """Return the config as plain data, with the size and the dtype of --tp-size and --dtype in its section.

    Raises ConfigError, DecisionError, and UsageError for a config without a size.
    """
    from tpinit.reference.config import read_config
    from tpinit.reference.errors import DecisionError
    from tpinit.reference.objects import CallArgs, Resolver

    reading = read_config(arguments.config)
    config: dict[str, Any] = copy.deepcopy(dict(reading.config or {}))
    if arguments.config is None and arguments.tp_size is None:
        config["tensor_parallel"] = {"autotp_size": ranks, "dtype": arguments.dtype or "fp32"}
        return config
    if arguments.tp_size is None and reading.section is None:
        raise UsageError(
            "the config has no tensor_parallel section. fix: give --tp-size, 1 for data-parallel ranks only, or add "
            '"tensor_parallel": {"autotp_size": N}'
        )
    resolver = Resolver(ranks)
    call = None
    if arguments.tp_size is not None:
        if config.get("tensor_parallel") is None:
            config["tensor_parallel"] = {}  # the TP groups are created
            reading = read_config(config)
        of_section = reading.section.dtype if reading.section is not None else None
        given = of_section or reading.precision
        call = CallArgs(arguments.tp_size, arguments.dtype or (given.value if given is not None else "fp32"))
    decision = resolver.resolve(call=call, config=reading)
    if decision.violations:
        raise DecisionError(decision)
    if call is not None:
        config["tensor_parallel"] |= {"autotp_size": arguments.tp_size, "dtype": call.dtype}
    return config


def check_tune(arguments: argparse.Namespace) -> int:
    """Return 0 if the ranks can start; else print the error and return 1. Raises UsageError.

    Reads the config and every line of the data, and looks at the folders: seconds earlier than the ranks would.
    """
    from tpinit.reference.errors import ConfigError, TpinitError
    from tpinit.runtime.errors import DataError
    from tpinit.runtime.finetune.lines import LineFile
    from tpinit.runtime.finetune.run_folder import check_output

    if not (Path(arguments.model) / "config.json").is_file():
        raise UsageError(f"--model {arguments.model} has no config.json. fix: give what save_pretrained wrote")
    try:
        options = tune_options(arguments, arguments.nproc)
        check_output(options.output, options.model, resume=options.resume, fresh=options.fresh)
        LineFile(options.data).check()
    except (ConfigError, DataError) as error:
        raise UsageError(str(error)) from None
    except TpinitError as error:
        print(f"tpinit: error: {error}", file=sys.stderr)
        return 1
    return 0


def compare_sizes(arguments: argparse.Namespace, launch: Callable[[argparse.Namespace], int]) -> int:
    """Train once with each TP size, draw the losses on top of each other and compare them. Return the exit code."""
    runs = []
    for size in arguments.compare_tp:
        one = copy.copy(arguments)
        one.compare_tp, one.tp_size, one.nproc = None, size, size
        one.output = str(Path(arguments.output) / f"tp{size}")
        runs.append(one)
    for one in runs:
        if status := check_tune(one):
            return status
    for one in runs:
        print(f"== tp {one.tp_size}", flush=True)
        if status := launch(one):
            return status
    return judge_losses(Path(arguments.output), arguments.compare_tp, _tolerance(runs[0]))


def _tolerance(arguments: argparse.Namespace) -> float:
    section: Any = _decided(arguments, arguments.nproc)["tensor_parallel"]
    return _TOLERANCE[section["dtype"]]


def judge_losses(output: Path, sizes: list[int], tolerance: float) -> int:
    """Draw the losses that the runs of these TP sizes wrote. Return 0 if they differ by no more than the tolerance."""
    from tpinit.runtime.finetune.loss_chart import draw_losses, largest_difference
    from tpinit.runtime.finetune.metrics import read_metrics

    curves = {
        f"tp {size}": [(page["step"], page["loss"]) for page in read_metrics(output / f"tp{size}")] for size in sizes
    }
    worst = largest_difference(curves)
    steps = len(curves[f"tp {sizes[0]}"])
    names = ", ".join(str(size) for size in sizes)
    note = f"largest relative difference from tp {sizes[0]}: {worst:.1e}"
    picture = draw_losses(curves, f"Loss of {steps} updates with TP sizes {names}", note)
    (output / "loss.svg").write_text(picture, encoding="utf-8")
    equal = worst <= tolerance
    print(
        f"\n{'equal' if equal else 'DIFFERENT'}: over {steps} updates the losses of tp {names} differ by at most "
        f"{worst:.1e} relative (tolerance {tolerance:.0e}); the picture is {output / 'loss.svg'}"
    )
    return 0 if equal else 1
