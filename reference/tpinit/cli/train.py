"""`tpinit train`: a few real steps of a small sharded Llama, beside the same model unsharded."""

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
Train a small Llama with random weights, cut over real processes, and the same model whole, on the same data.
Prints the decision, the plan, and both losses step by step; fails where they differ.

Without torchrun this starts its own processes on this machine (gloo, or nccl where there is CUDA). Under
torchrun it is one of them:

  torchrun --nproc-per-node 4 -m tpinit.cli.main train --tp-size 2"""

EPILOG = """\
Without --config the section is {"autotp_size": NPROC}. --tp-size makes a call of tp_model_init before
initialize, so that call and config are merged by the contract.

examples:
  tpinit train
  tpinit train --nproc 4 --tp-size 2 --steps 10
  tpinit train --config ds_config.json --tp-size 2 --dtype bf16

exit codes: 0 equal, 1 the losses differ or the inputs violate the contract, 2 the inputs can't be read.
"""

# The verdict goes from rank 0 to the process that started the ranks through a file: the launcher has no other
# exit codes than 0 and 1.
_VERDICT = "TPINIT_TRAIN_VERDICT"
_LENGTH = 32  # tokens in a sequence
_MICRO = 2  # samples in a micro batch where the config names none
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
    """Train, in this process if it is a rank already, else in processes started for it. Returns the exit code."""
    if arguments.config is not None and arguments.dtype is not None and arguments.tp_size is None:
        raise UsageError("--dtype is an argument of the call, with --config too. fix: give --tp-size as well")
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _rank(arguments)
    return _refused(arguments) or _launch(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def _refused(arguments: argparse.Namespace) -> int:
    """Return the exit code of inputs that can't be decided, after saying why; 0 for good ones.

    The ranks would say the same, after seconds of starting up.
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
    """Start the ranks under torch.distributed.run and return what rank 0 found."""
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
        verdict = Path(folder) / "verdict"
        launcher += ["--log-dir", folder]  # which it would leave behind elsewhere
        environment = {"OMP_NUM_THREADS": "1", **os.environ, _VERDICT: str(verdict)}
        status = subprocess.run([*launcher, *command], env=environment, check=False).returncode
        return int(verdict.read_text()) if status == 0 and verdict.exists() else 1


def _rank(arguments: argparse.Namespace) -> int:
    """Be one rank. Only rank 0 prints, and its verdict counts for all."""
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
    if _VERDICT not in os.environ:
        return status
    if first:
        Path(os.environ[_VERDICT]).write_text(str(status))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    """Train both models and compare their losses. Raises TpinitError where the run is refused."""
    import copy

    import torch
    from tpinit.reference.explain import explain
    from tpinit.runtime import initialize, tp_model_init

    model = _model()
    whole = copy.deepcopy(model)
    if arguments.tp_size is not None:
        tp_model_init(model, arguments.tp_size, arguments.dtype or "fp32")
    config = _config(arguments, int(os.environ["WORLD_SIZE"]))
    optimizer: Any = None
    if not _names_optimizer(config):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    engine, _, _, _ = initialize(model=model, optimizer=optimizer, config=config)
    print(f"decision\n\n{_indented(explain(engine.decision))}\n\nplan\n\n{_indented(str(engine.plan))}\n", flush=True)
    return _compare(engine, whole, arguments.steps)


def _model() -> nn.Module:
    """Return the model of this command: the same weights in every process and every run."""
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
        return True  # initialize will say what is wrong, on all ranks at once


def _compare(engine: Engine, whole: nn.Module, steps: int) -> int:
    """Train the engine on every rank and the whole model on rank 0; print both losses and the verdict."""
    import torch
    import torch.distributed as dist
    from tpinit.runtime.training.optimizers import build_optimizer
    from tpinit.runtime.training.schedules import build_schedule

    first = dist.get_rank() == 0
    settings = engine.settings
    whole.to(engine.device)
    reference: Any = torch.optim.AdamW(whole.parameters(), lr=1e-3, weight_decay=0.0)
    if settings.optimizer is not None:
        reference = build_optimizer(settings.optimizer, whole.parameters())
    schedule = build_schedule(settings.scheduler, reference) if settings.scheduler is not None else None
    tolerance = _TOLERANCE[engine.decision.dtype.value.value if engine.decision.dtype.value is not None else "fp32"]
    worst = 0.0
    print("step    sharded loss  unsharded loss  relative difference")
    batch = _batch(engine)  # the same in every step, so that the loss falls
    for step in range(steps):
        sharded = _sharded_step(engine, batch)
        if not first:
            continue
        loss = whole(input_ids=batch.flatten(0, 2), labels=batch.flatten(0, 2)).loss
        loss.backward()
        if settings.clipping:
            torch.nn.utils.clip_grad_norm_(whole.parameters(), settings.clipping)
        reference.step()
        reference.zero_grad()
        if schedule is not None:
            schedule.step()
        expected = float(loss.detach())
        apart = abs(sharded - expected) / abs(expected)
        worst = max(worst, apart) if apart == apart else float("inf")
        print(f"{step + 1:4d}  {sharded:14.8f}  {expected:14.8f}  {apart:19.1e}", flush=True)
    dist.barrier()
    good = worst <= tolerance
    verdict = "equal" if good else "DIFFERENT"
    print(f"\n{verdict}: over {steps} steps the losses are at most {worst:.1e} apart (tolerance {tolerance:.0e})")
    return 0 if good else 1


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
