"""`engine.save_checkpoint` and `engine.load_checkpoint`, with DeepSpeed's signatures."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from tpinit.runtime.checkpoint.folders import check_tag
from tpinit.runtime.checkpoint.load import Opened, open_checkpoint, verify
from tpinit.runtime.checkpoint.places import Write, chosen_writes
from tpinit.runtime.checkpoint.ranks import agree
from tpinit.runtime.checkpoint.save import BackgroundSave, SaveOptions, save
from tpinit.runtime.errors import CheckpointError
from tpinit.runtime.groups.agreement import RankReport
from tpinit.runtime.training.checkpoint_content import content_page, content_tensors, rank_place
from tpinit.runtime.training.load_engine import EngineLoad, LoadOptions
from tpinit.runtime.training.zero_updates import complete_states

if TYPE_CHECKING:
    from tpinit.runtime.training.engine import Engine

__all__ = ["load_checkpoint", "save_checkpoint", "wait_for_save"]

_log = logging.getLogger("tpinit")
_running: weakref.WeakKeyDictionary[Engine, BackgroundSave] = weakref.WeakKeyDictionary()


def save_checkpoint(
    engine: Engine,
    save_dir: str | os.PathLike[str],
    tag: str | None = None,
    client_state: Mapping[str, Any] | None = None,
    save_latest: bool = True,
    exclude_frozen_parameters: bool = False,
    *,
    keep_last: int | None = None,
    async_save: bool = False,
) -> bool:
    """Save the whole run as `save_dir`/`tag`, so that any number of ranks can go on with it. Returns True.

    Call it on all ranks, between updates. `tag` is `global_stepN` without one. `client_state` is what
    `load_checkpoint` returns, that of rank 0. `keep_last` removes all but so many checkpoints of the folder.
    `async_save` copies the tensors and writes them in a thread: the next save or load waits for it, and raises its
    error. Raises CheckpointError on all ranks if it fails on one, and the last checkpoint is then as it was.
    """
    engine._call_check.check_alive("save_checkpoint")
    wait_for_save(engine)
    _compare_call(engine, "save_checkpoint")
    with complete_states(engine.optimizer):
        return _save(
            engine, save_dir, tag, client_state, save_latest, exclude_frozen_parameters, keep_last, bool(async_save)
        )


def _save(
    engine: Engine,
    save_dir: str | os.PathLike[str],
    tag: str | None,
    client_state: Mapping[str, Any] | None,
    save_latest: bool,
    exclude_frozen_parameters: bool,
    keep_last: int | None,
    async_save: bool,
) -> bool:
    def prepare(report: RankReport) -> tuple[SaveOptions, list[Write], Mapping[str, Any]]:
        options = SaveOptions(_folder(save_dir, "save_dir"), _tag(engine, tag), save_latest, _count(keep_last))
        tensors = content_tensors(engine, exclude_frozen_parameters)
        page = content_page(engine, client_state, exclude_frozen_parameters)
        writes = chosen_writes(tensors, rank_place(engine))
        report.fields |= {"tag": options.tag, "folder": str(options.folder), "global_steps": engine.global_steps}
        report.fields |= {one.name: [*one.shape, str(one.tensor.dtype)] for one in tensors if not one.single}
        report.fields |= {"async_save": async_save, "keep_last": keep_last, "save_latest": bool(save_latest)}
        return options, writes, page

    options, writes, page = agree("save_checkpoint", prepare)
    if any(one.grad is not None for state in engine._param_states for one in (state.parameter, state.target)):
        _log.warning(
            "save_checkpoint between the micro batches of an update: their gradients are not in the checkpoint"
        )
    background = save(writes, page, options, async_save)
    if background is not None:
        _running[engine] = background
    return True


def load_checkpoint(
    engine: Engine,
    load_dir: str | os.PathLike[str],
    tag: str | None = None,
    load_module_strict: bool = True,
    load_optimizer_states: bool = True,
    load_lr_scheduler_states: bool = True,
    load_module_only: bool = False,
    custom_load_fn: Callable[..., Any] | None = None,
) -> tuple[str | None, dict[str, Any]]:
    """Go on with a run that was saved, by any number of ranks. Returns the checkpoint's folder and the client's state.

    Call it on all ranks. Without `tag` it is the checkpoint that the file `latest` names. Returns (None, {}) if there
    is no such file. `custom_load_fn(src=whole state dict, dst=engine.module)` replaces the loading of the model. Raises
    CheckpointError on all ranks, and changes nothing, for a checkpoint that is damaged or does not fit.
    """
    engine._call_check.check_alive("load_checkpoint")
    wait_for_save(engine)
    _compare_call(engine, "load_checkpoint")
    began = time.monotonic()
    options = LoadOptions(
        load_module_strict, load_optimizer_states, load_lr_scheduler_states, load_module_only, custom_load_fn
    )

    def find(report: RankReport) -> tuple[Opened, EngineLoad] | None:
        opened = open_checkpoint(_folder(load_dir, "load_dir"), tag)
        report.fields["checkpoint"] = opened.folder.name if opened else None
        if opened is None:
            return None
        report.fields["files"] = opened.stamp
        load = EngineLoad(engine, opened, options)
        load.compare()
        verify(opened, dist.get_rank(), dist.get_world_size())
        return opened, load

    found = agree("load_checkpoint", find)
    if found is None:
        _log.warning("%s has no file 'latest', which names a checkpoint: nothing was loaded", load_dir)
        return None, {}
    opened, load = found

    def fill(_: RankReport) -> int:
        try:
            return load.fill()
        except Exception as failure:
            raise CheckpointError(
                f"{failure}; parts of the checkpoint are loaded: do not go on with this engine"
            ) from failure

    size = agree("read a checkpoint", fill)
    client_state = load.apply()
    _log.info("loaded %s: %.1f MB on this rank, %.1f s", opened.folder, size / 1e6, time.monotonic() - began)
    return str(opened.folder), client_state


def wait_for_save(engine: Engine) -> None:
    """Wait for a save in the background. Raises the CheckpointError that ended it."""
    background = _running.pop(engine, None)
    if background is not None:
        background.wait()


def _compare_call(engine: Engine, what: str) -> None:
    """Raise AgreementError on all ranks of the TP group if one of them calls something else."""
    calls = engine._call_check.calls
    engine._call_check.compare_call(what, engine.module)
    engine._call_check.calls = calls  # the count seeds forwards that are not compared: a save must not change them


def _folder(given: object, name: str) -> Path:
    if not isinstance(given, (str, os.PathLike)) or not str(given):
        raise CheckpointError(f"{name} is {given!r}: give the path of a folder")
    return Path(given).absolute()


def _tag(engine: Engine, tag: str | None) -> str:
    return check_tag(f"global_step{engine.global_steps}" if tag is None else tag)


def _count(keep_last: int | None) -> int | None:
    if keep_last is not None and (type(keep_last) is not int or keep_last < 1):
        raise CheckpointError(f"keep_last is {keep_last!r}, and must be a number of checkpoints from 1 on, or None")
    return keep_last
