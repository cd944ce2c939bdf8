"""`tpinit train`: trains a small sharded Llama for a few steps, beside the same model unsharded."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpinit.cli.usage import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from tpinit.runtime.training.engine import Engine

__all__ = ["add_arguments", "run"]

DESCRIPTION = """\
Train a small Llama with random weights, sharded over real processes, and the same model unsharded, on the same
data. Print the decision, the plan, and both losses of every step; fail if the losses differ.

Without torchrun the command starts its own processes on this machine (with nccl if there is CUDA, else gloo). Under
torchrun it is one of the ranks:

  torchrun --nproc-per-node 4 -m tpinit.cli.main train --tp-size 2"""

EPILOG = """\
Without --config the section is {"autotp_size": NPROC}. With --tp-size, tp_model_init is called before initialize,
and the call and the config are merged by the contract.

examples:
  tpinit train
  tpinit train --nproc 4 --tp-size 2 --steps 10
  tpinit train --config ds_config.json --tp-size 2 --dtype bf16

exit codes: 0 equal, 1 the losses differ or the inputs violate the contract, 2 the inputs can't be read.
"""

# Rank 0 passes the exit code to the process that started the ranks through a file, because the launcher returns only
# 0 or 1. This variable holds the file's path.
_STATUS_FILE = "TPINIT_TRAIN_STATUS_FILE"
_LENGTH = 32  # tokens per sample
_MICRO = 2  # samples per micro batch, unless the config sets it
_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-2}  # relative, on the loss


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subcommand."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--config", metavar="FILE", help="a DeepSpeed config (default: a section and AdamW)")
    parser.add_argument("--nproc", type=_count, default=2, metavar="N", help="processes to start (default: 2)")
    parser.add_argument("--tp-size", type=int, metavar="N", help="call tp_model_init with this size")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="dtype of the parameters (default: fp32)")
    parser.add_argument("--steps", type=_count, default=5, metavar="N", help="optimizer steps (default: 5)")


def run(arguments: argparse.Namespace) -> int:
    """Train, in this process if it is a rank already, else in new processes. Return the exit code."""
    if arguments.config is not None and arguments.dtype is not None and arguments.tp_size is None:
        raise UsageError("--dtype is an argument of the call. fix: give --tp-size too, or set the dtype in the config")
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _rank(arguments)
    return _check(arguments) or _launch(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def _check(arguments: argparse.Namespace) -> int:
    """Return 0 for inputs that give a decision; else print the error and return 1. Raises UsageError.

    The ranks would raise the same errors, but seconds later, when they have started.
    """
    from tpinit.reference.errors import ConfigError, DecisionError
    from tpinit.reference.objects import CallArgs, Resolver

    call = None if arguments.tp_size is None else CallArgs(arguments.tp_size, arguments.dtype or "fp32")
    try:
        decision = Resolver(arguments.nproc).resolve(call=call, config=_config(arguments, arguments.nproc))
    except ConfigError as error:
        raise UsageError(str(error)) from None
    if decision.violations:
        print(f"tpinit: error: {DecisionError(decision)}", file=sys.stderr)
        return 1
    return 0


def _launch(arguments: argparse.Namespace) -> int:
    """Start the ranks under torch.distributed.run and return the exit code of rank 0."""
    import subprocess

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(arguments.nproc)]
    command = ["-m", "tpinit.cli.main", "train", "--steps", str(arguments.steps)]
    for option, value in (
        ("--config", arguments.config),
        ("--tp-size", arguments.tp_size),
        ("--dtype", arguments.dtype),
    ):
        if value is not None:
            command += [option, str(value)]
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="tpinit-train-") as folder:
        status_file = Path(folder) / "status"
        launcher += ["--log-dir", folder]  # its default is a folder that it does not remove
        environment = {"OMP_NUM_THREADS": "1", **os.environ, _STATUS_FILE: str(status_file)}
        status = subprocess.run([*launcher, *command], env=environment, check=False).returncode
        return int(status_file.read_text()) if status == 0 and status_file.exists() else 1


def _rank(arguments: argparse.Namespace) -> int:
    """Run one rank. Only rank 0 prints, and its exit code is that of the command."""
    import torch.distributed as dist
    from tpinit.reference.errors import ConfigError, TpinitError

    first = os.environ["RANK"] == "0"
    if not first:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for as long as the process lives
    try:
        status = _train(arguments)
    except TpinitError as error:
        status = 2 if isinstance(error, ConfigError) else 1
        if first:
            print(f"tpinit: error: {error}", file=sys.stderr)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if _STATUS_FILE not in os.environ:
        return status
    if first:
        Path(os.environ[_STATUS_FILE]).write_text(str(status))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    """Train both models and compare their losses. Raises TpinitError if the run is refused."""
    import copy

    import torch
    from tpinit.reference.explain import explain
    from tpinit.runtime import initialize, tp_model_init

    model = _model()
    unsharded = copy.deepcopy(model)
    if arguments.tp_size is not None:
        tp_model_init(model, arguments.tp_size, arguments.dtype or "fp32")
    config = _config(arguments, int(os.environ["WORLD_SIZE"]))
    optimizer: Any = None
    if not _names_optimizer(config):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    engine, _, _, _ = initialize(model=model, optimizer=optimizer, config=config)
    print(f"device\n\n  {engine.device_choice}\n")
    print(f"decision\n\n{_indented(explain(engine.decision))}\n\nplan\n\n{_indented(str(engine.plan))}\n", flush=True)
    return _compare(engine, unsharded, arguments.steps)


def _model() -> nn.Module:
    """Return the model, with the same weights in every process and every run."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=256,
        max_position_embeddings=_LENGTH,
        use_cache=False,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model.to(torch.float32).train()


def _config(arguments: argparse.Namespace, world_size: int) -> Any:
    if arguments.config is not None:
        return arguments.config
    section: dict[str, object] = {}
    if arguments.tp_size is None:
        section = {"autotp_size": world_size, "dtype": arguments.dtype or "fp32"}
    return {
        "train_micro_batch_size_per_gpu": _MICRO,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
        "tensor_parallel": section,
    }


def _names_optimizer(config: Any) -> bool:
    from tpinit.reference.config import read_config

    try:
        return read_config(config).config.get("optimizer") is not None
    except ValueError:
        return True  # malformed: initialize raises the error on all ranks


def _compare(engine: Engine, unsharded: nn.Module, steps: int) -> int:
    """Train the engine on every rank and the unsharded model on rank 0; print both losses. Return the exit code."""
    import torch
    import torch.distributed as dist
    from tpinit.runtime.training.optimizers import build_optimizer
    from tpinit.runtime.training.schedules import build_schedule

    first = dist.get_rank() == 0
    settings = engine.settings
    unsharded.to(engine.device)
    reference: Any = torch.optim.AdamW(unsharded.parameters(), lr=1e-3, weight_decay=0.0)
    if settings.optimizer is not None:
        reference = build_optimizer(settings.optimizer, unsharded.parameters())
    schedule = build_schedule(settings.scheduler, reference) if settings.scheduler is not None else None
    tolerance = _TOLERANCE[engine.decision.dtype.value.value if engine.decision.dtype.value is not None else "fp32"]
    worst = 0.0
    print("step    sharded loss  unsharded loss  relative difference")
    batch = _batch(engine)  # the same in every step, so that the loss falls
    for step in range(steps):
        sharded = _sharded_step(engine, batch)
        if not first:
            continue
        loss = unsharded(input_ids=batch.flatten(0, 2), labels=batch.flatten(0, 2)).loss
        loss.backward()
        if settings.clipping:
            torch.nn.utils.clip_grad_norm_(unsharded.parameters(), settings.clipping)
        reference.step()
        reference.zero_grad()
        if schedule is not None:
            schedule.step()
        expected = float(loss.detach())
        error = abs(sharded - expected) / abs(expected)
        worst = max(worst, error) if error == error else float("inf")
        print(f"{step + 1:4d}  {sharded:14.8f}  {expected:14.8f}  {error:19.1e}", flush=True)
    dist.barrier()
    equal = worst <= tolerance
    word = "equal" if equal else "DIFFERENT"
    print(f"\n{word}: over {steps} steps the losses differ by at most {worst:.1e} relative (tolerance {tolerance:.0e})")
    return 0 if equal else 1


def _batch(engine: Engine) -> torch.Tensor:
    """Return the tokens of one update: [data-parallel ranks, micro batches, samples, length]."""
    import torch
    import torch.distributed as dist

    parts = dist.get_world_size() // engine.groups.tp.size
    shape = (parts, engine.gradient_accumulation_steps(), engine.train_micro_batch_size_per_gpu() or _MICRO, _LENGTH)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=generator).to(engine.device)


def _sharded_step(engine: Engine, batch: torch.Tensor) -> float:
    """Run one update on this rank's part of the batch and return the mean loss over all of it."""
    import torch
    import torch.distributed as dist

    total = torch.zeros((), device=engine.device)
    for ids in batch[engine.groups.data_index]:
        loss = engine(input_ids=ids, labels=ids).loss
        total += engine.backward(loss)
        engine.step()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
