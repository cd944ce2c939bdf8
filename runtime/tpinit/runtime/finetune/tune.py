"""One rank of a run: read and tokenize, load and shard, train, save."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from tpinit.reference.explain import explain
from tpinit.reference.objects import Resolver
from tpinit.runtime.checkpoint.ranks import on_first_rank
from tpinit.runtime.errors import CheckpointError, DataError
from tpinit.runtime.finetune.config_values import completed_config
from tpinit.runtime.finetune.lines import LineFile
from tpinit.runtime.finetune.loss_chart import draw_losses
from tpinit.runtime.finetune.metrics import FILE, read_metrics
from tpinit.runtime.finetune.options import TuneOptions
from tpinit.runtime.finetune.progress import short
from tpinit.runtime.finetune.records import Records
from tpinit.runtime.finetune.rows import Rows, collate_for, make_rows
from tpinit.runtime.finetune.run_folder import CHECKPOINTS, check_output, clear_output, has_checkpoint
from tpinit.runtime.groups import protocol, world
from tpinit.runtime.groups.agreement import RankReport, check_reports
from tpinit.runtime.groups.devices import message_device
from tpinit.runtime.init.from_pretrained import from_pretrained
from tpinit.runtime.init.launch import PORT
from tpinit.runtime.settings import read_settings
from tpinit.runtime.training.engine import Engine
from tpinit.runtime.training.exit_signal import TrainingStopped, settle

__all__ = ["tune"]

_LONGEST = 1024  # tokens of a row, unless --length says more


@dataclass(slots=True)
class Material:
    """What is trained on: rows, and the tokenizer that made them."""

    tokenizer: Any
    rows: Rows
    length: int


def tune(options: TuneOptions) -> int:
    """Fine-tune `options.model`, as one of the ranks that torchrun or `tpinit train` started. Return the exit code.

    That is 0, or 128 + the number of a signal that ended the run early, after a checkpoint. Raises TpinitError, on all
    ranks, for lines, configs, models and folders that can't be used.
    """
    torch.manual_seed(options.seed)
    world.start(PORT, None)
    say: Callable[[str], None] = _print if dist.get_rank() == 0 else lambda _: None
    material = _together(lambda: _read(options))
    engine, steps = _start(options, material, say)
    say(f"device: {engine.device_choice}\n\n{explain(engine.decision)}\n")
    say(f"model: {type(engine.module).__name__}, {short(engine.num_parameters())} parameters")
    state = _resume(engine, options, material, say)
    engine.exit_on_signal(options.output / CHECKPOINTS, {"data": state}, keep_last=options.keep_last)
    stopped = _train(engine, options, steps, state, say)
    if stopped is not None:
        say(f"stopped by {stopped.signal.name} after update {engine.global_steps}: the same command goes on from there")
        engine.destroy()
        return 128 + stopped.signal
    settle(engine)  # from here on a signal ends the process at once
    _save_model(engine, options, material)
    say(f"the model is in {options.output}")
    engine.destroy()
    return 0


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # a command line prints


def _together(read: Callable[[], Material]) -> Material:
    """Return what `read` returns. Raises on all ranks if it fails on one, or if the ranks read different rows."""

    def read_and_report(report: RankReport) -> Material:
        found = read()
        report.fields["rows"] = found.rows.digest()
        return found

    check = partial(check_reports, title="the ranks read different data, and nothing was trained")
    found, _ = protocol.run(protocol.agree("read the data", read_and_report, check))
    return found


def _read(options: TuneOptions) -> Material:
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped there; the run shows its own
    check_output(options.output, options.model, resume=options.resume, fresh=options.fresh)
    try:
        config = AutoConfig.from_pretrained(options.model, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(options.model, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{options.model} has no model or tokenizer that transformers can read ({reason}): give the directory that "
            "save_pretrained of a model and of its tokenizer wrote"
        ) from error
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    length = options.length or min(positions or _LONGEST, _LONGEST)
    if positions is not None and length > positions:
        raise DataError(f"--length is {length}, and the model has {positions} positions: give at most that")
    rows = make_rows(
        LineFile(options.data),
        tokenizer,
        length,
        pack=options.pack,
        everything=options.everything,
        vocabulary=text.vocab_size,
    )
    return Material(tokenizer, rows, length)


def _start(options: TuneOptions, material: Material, say: Callable[[str], None]) -> tuple[Engine, int]:
    """Return the engine and the number of updates of the whole run."""
    rows = material.rows
    ranks = dist.get_world_size()
    decision = Resolver(ranks).resolve(call=None, config=options.config)
    tp_size = decision.tp_size.value or 1
    replicas = max(1, ranks // tp_size)
    draft, _ = completed_config(options, 1)
    batch = read_settings(draft, replicas, decision.dtype.value, ranks).batch
    per_epoch = -(-len(rows) // replicas) / (batch.micro or 1)
    whole = math.floor(per_epoch) if draft.get("dataloader_drop_last") is True else math.ceil(per_epoch)
    if not whole:
        raise DataError(
            f"{options.data} gives {len(rows)} rows, fewer than the {replicas} x {batch.micro} of a micro batch, and "
            "dataloader_drop_last leaves them out: write it false, or give more lines"
        )
    steps = options.steps or -(-whole * options.epochs // batch.accumulation)
    config, filled = completed_config(options, steps)
    engine, *_ = from_pretrained(
        options.model,
        config=config,
        training_data=rows,
        collate_fn=collate_for(material.tokenizer, tp_size if options.sequence_parallel else 1),
        sequence_parallel=options.sequence_parallel,
    )
    assert engine.training_dataloader is not None
    engine.training_dataloader.sampler.seed = options.seed  # type: ignore[attr-defined]  # of DistributedSampler
    trained = int(rows.trained.sum())
    say(
        f"data: {rows.lines} lines, {len(rows)} rows of at most {material.length} tokens; {len(rows.tokens):,} tokens, "
        f"{trained:,} of them with a loss"
    )
    for note in rows.notes:
        say(f"data: {note}")
    for sentence in filled:
        say(f"filled in: {sentence}")
    size = engine.settings.batch
    say(f"an update: {size.train} rows = {size.micro} x {size.accumulation} x {replicas} data-parallel ranks")
    say(f"updates: {steps}, an epoch has {whole / size.accumulation:g}")
    return engine, steps


def _resume(engine: Engine, options: TuneOptions, material: Material, say: Callable[[str], None]) -> dict[str, Any]:
    """Go on with the last checkpoint of the folder, if there is one. Return what describes the data of this run.

    Raises CheckpointError if that run read other data, or read it otherwise.
    """
    mine: dict[str, Any] = {
        "rows": material.rows.digest(),
        "length": material.length,
        "seed": options.seed,
        "pack": options.pack,
        "loss-on": "all" if options.everything else "answers",
    }
    on_first_rank(str(options.output), lambda: clear_output(options.output, options.fresh))
    if not has_checkpoint(options.output):
        return mine
    folder, client_state = engine.load_checkpoint(options.output / CHECKPOINTS)
    theirs = client_state.get("data")
    differing = [name for name, value in mine.items() if not isinstance(theirs, dict) or theirs.get(name) != value]
    if differing:
        raise CheckpointError(
            f"{folder} is of a run over other data: {', '.join(differing)} differ. Give the file and the options of "
            "that run, or --fresh to begin anew"
        )
    say(f"resumed: {folder}, after update {engine.global_steps}")
    return mine


class _CountedBatches:
    """The micro batches of the engine's loader, on its device, and the number of tokens in them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens = 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        batch = next(self.engine.batches)  # type: ignore[arg-type]  # there is training_data
        self.tokens += int(batch["attention_mask"].sum())
        return {name: value.to(self.engine.device) for name, value in batch.items()}


def _train(
    engine: Engine,
    options: TuneOptions,
    steps: int,
    state: dict[str, Any],
    say: Callable[[str], None],
) -> TrainingStopped | None:
    """Train until update `steps`, and save. Return what ended it early, on all ranks the same, or None."""
    if engine.global_steps >= steps:
        say(f"nothing to train: the run has {engine.global_steps} of {steps} updates (--steps, --epochs)")
        return None
    metrics = str(options.output / FILE)
    records = on_first_rank(metrics, lambda: Records(options, engine.global_steps, steps))
    batches = _CountedBatches(engine)
    stopped: TrainingStopped | None = None
    try:
        while engine.global_steps < steps and stopped is None:
            page, stopped = _update(engine, batches)
            on_first_rank(metrics, partial(_add, records, page))
            last = engine.global_steps == steps
            if stopped is None and (last or (options.save_every and engine.global_steps % options.save_every == 0)):
                engine.save_checkpoint(
                    options.output / CHECKPOINTS, client_state={"data": state}, keep_last=options.keep_last
                )
    finally:
        if records is not None:
            records.close()
    return stopped


def _add(records: Records | None, page: dict[str, Any]) -> None:
    assert records is not None  # on rank 0
    records.add(page)


def _update(engine: Engine, batches: _CountedBatches) -> tuple[dict[str, Any], TrainingStopped | None]:
    """Run one update. Return what it measured, over all ranks, and what ended the run behind it, or None."""
    stopped = None
    began, batches.tokens = time.perf_counter(), 0
    rate = engine.get_lr()[0]
    loss: torch.Tensor | None
    try:
        loss = engine.train_batch(iter(batches))
    except TrainingStopped as stop:  # behind the update, and after its checkpoint
        loss, stopped = stop.loss, stop
    assert loss is not None  # `train_batch` ran the update
    mine = torch.tensor(
        [float(loss), batches.tokens, peak_bytes(engine.device)], dtype=torch.float64, device=message_device(None)
    )
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine)
    everyone = torch.stack(gathered).cpu()
    seconds = time.perf_counter() - began
    tokens = int(everyone[:, 1].sum()) // engine.groups.tp.size
    assert engine.batches is not None
    page = {
        "step": engine.global_steps,
        "epoch": round(engine.batches.epoch + engine.batches.index / len(engine.batches.loader), 4),
        "loss": float(everyone[:, 0].mean()),
        "grad_norm": engine.get_global_grad_norm(),
        "lr": rate,
        "tokens": tokens,
        "seconds": round(seconds, 6),
        "tokens_per_second": round(tokens / seconds, 1),
        "memory_bytes": int(everyone[:, 2].max()),
    }
    if not engine.step_applied:
        page["skipped"] = True
    return page, stopped


def peak_bytes(device: torch.device) -> int:
    """Return the largest memory that this rank has held: of the accelerator, or of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _save_model(engine: Engine, options: TuneOptions, material: Material) -> None:
    """Write the whole model, its generation config and its tokenizer, and the picture of its losses."""
    engine.save_pretrained(options.output, tokenizer=material.tokenizer)
    picture = options.output / "loss.svg"
    on_first_rank(str(picture), lambda: picture.write_text(_losses(options), encoding="utf-8"))


def _losses(options: TuneOptions) -> str:
    losses = [(page["step"], page["loss"]) for page in read_metrics(options.output)]
    return draw_losses({"loss": losses}, f"Loss of {options.output.name}")
