"""Models loaded or drawn by slices, compared with the unsharded model that `initialize` shards."""

from __future__ import annotations

import copy
import errno
import gc
import io
import os
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import from_config, from_pretrained, initialize
from tpinit.runtime.loading.safetensors_dir import open_safetensors_dir

from families import catalogue
from support.family_training import SGD, family_batch, family_loss
from support.refusals import error_of, in_step

ADAMW = {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.1}}


def _config(tp: int, dtype: str = "fp32", **more: Any) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0.5,
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": tp, "dtype": dtype},
        **more,
    }


def save_checkpoint(rank: int, name: str, folder: str, shards: str = "5GB", dtype: str | None = None) -> dict[str, Any]:
    """Save a family's small model on rank 0; return its files and the names of its tensors."""
    if rank == 0:
        model = catalogue.build(name)
        if dtype is not None:
            model = model.to(getattr(torch, dtype))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(folder, max_shard_size=shards)
    dist.barrier()
    stored = open_safetensors_dir(Path(folder))
    return {"files": sorted(path.name for path in Path(folder).iterdir()), "names": sorted(stored.tensors)}


def train_loaded(
    rank: int,
    name: str,
    folder: str,
    tp: int,
    steps: int = 3,
    dtype: str = "fp32",
    spoil: str = "",
    adamw: bool = False,
) -> dict[str, Any]:
    """Train a model loaded by slices beside one sharded in memory; return how they differ."""
    whole = type(catalogue.build(name)).from_pretrained(folder, dtype=torch.float32).train()
    before = _state()
    config = _config(tp, dtype, optimizer=ADAMW if adamw else SGD)
    engine, optimizer, _, _ = from_pretrained(folder, config=config)
    untouched = any(torch.equal(one, torch.get_rng_state()) for one in before)
    return {
        **_beside(rank, name, engine, whole, config, steps, spoil),
        "untouched": untouched,
        "optimizer": type(optimizer).__name__,
    }


def train_drawn(rank: int, name: str, tp: int, seed: int = 3, other_seed: int = 3, steps: int = 2) -> dict[str, Any]:
    """Train a model drawn by slices beside one drawn unsharded from the same seed; return how they differ."""
    sample = catalogue.build(name)
    torch.manual_seed(other_seed)
    whole = type(sample)(copy.deepcopy(sample.config))
    torch.manual_seed(11)
    before = _state()
    config = _config(tp)
    engine, _, _, _ = from_config(sample.config, seed=seed, model_class=type(sample), config=config)
    untouched = any(torch.equal(one, torch.get_rng_state()) for one in before)
    return {**_beside(rank, name, engine, whole, config, steps, ""), "untouched": untouched}


def _state() -> list[torch.Tensor]:
    """Return the RNG states of all ranks: the engine gives a TP group that of its first rank."""
    states = [torch.get_rng_state() for _ in range(dist.get_world_size())]
    dist.all_gather(states, torch.get_rng_state())
    return states


def _beside(
    rank: int, name: str, engine: Any, whole: Any, config: dict[str, Any], steps: int, spoil: str
) -> dict[str, Any]:
    reference, _, _, _ = initialize(model=whole, config=config)
    if spoil == "one number" and rank == 1:
        with torch.no_grad():
            engine.module.get_parameter("model.layers.1.mlp.down_proj.weight")[0, 0] += 1
    mine, theirs = dict(engine.module.named_parameters()), dict(reference.module.named_parameters())
    buffers, others = dict(engine.module.named_buffers()), dict(reference.module.named_buffers())
    found: dict[str, Any] = {
        "plans": engine.plan == reference.plan,
        "names": list(mine) == list(theirs),
        "weights": all(torch.equal(one, theirs[key]) and one.dtype == theirs[key].dtype for key, one in mine.items()),
        "buffers": buffers.keys() == others.keys()
        and all(torch.equal(one, others[key]) for key, one in buffers.items()),
        "trainable": [key for key, one in mine.items() if one.requires_grad]
        == [key for key, one in theirs.items() if one.requires_grad],
        "cut": sum(record.dim is not None for record in engine.plan.parameters),
        "tied": sum(len(record.names) > 1 for record in engine.plan.parameters),
        "storage": all(one.untyped_storage().nbytes() == one.numel() * one.element_size() for one in mine.values()),
    }
    apart = 0.0
    mine_of = engine.groups.data_index
    parts = dist.get_world_size() // engine.groups.tp.size
    for step in range(steps):
        batch = family_batch(name, reference.module, step, 2 * parts, False)
        part = {
            key: value[2 * mine_of : 2 * mine_of + 2] if isinstance(value, torch.Tensor) and value.dim() else value
            for key, value in batch.items()
        }
        losses = []
        for one in (engine, reference):
            loss = family_loss(name, one, part, False)
            one.backward(loss)
            one.step()
            losses.append(float(loss))
        apart = max(apart, abs(losses[0] - losses[1]))
    found["loss"] = apart
    found["trained"] = max(float((one - theirs[key]).abs().max()) for key, one in mine.items())
    return found


def draw_with_different_seeds(rank: int) -> dict[str, Any]:
    """Draw weights from a different seed on each rank; return the error."""
    sample = catalogue.build("llama")
    error = error_of(lambda: from_config(sample.config, seed=rank, model_class=type(sample), config=_config(2)))
    return {**error, "collective": in_step(rank)}


def load_refused(rank: int, folder: str, tp: int = 2, **arguments: Any) -> dict[str, Any]:
    """Load a checkpoint that must be refused; return the error, and whether the ranks are still in step."""
    start = time.monotonic()
    error = error_of(lambda: from_pretrained(folder.replace("RANK", str(rank)), config=_config(tp), **arguments))
    return {**error, "collective": in_step(rank), "seconds": time.monotonic() - start}


class _Failing(io.RawIOBase):
    """A file on a disk that fails, or one that was truncated after it was opened."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self._how = how

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset

    def readinto(self, buffer: Any) -> int:
        if self._how == "disk":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return 0


def load_failing_file(rank: int, folder: str, how: str) -> dict[str, Any]:
    """Load from a file that fails on one rank, after everything was checked."""
    from tpinit.runtime.loading.safetensors_dir import SafetensorsDir

    original, pieces = SafetensorsDir._read, 0

    def read(self: Any, path: Any, out: torch.Tensor, place: int) -> None:
        nonlocal pieces
        pieces += 1
        if rank == 1 and pieces == 12:
            self._open[path] = _Failing(how)
        original(self, path, out, place)

    SafetensorsDir._read = read  # type: ignore[method-assign]  # for one load
    try:
        return load_refused(rank, folder)
    finally:
        SafetensorsDir._read = original  # type: ignore[method-assign]  # as it was


def save_large_checkpoint(rank: int, folder: str) -> None:
    """Save a Llama of about 100 MB in several files, on rank 0."""
    if rank == 0:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**_LARGE)).save_pretrained(folder, max_shard_size="30MB")
    dist.barrier()


_LARGE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 8192,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "use_cache": False,
}


def peak_memory(rank: int, how: str, folder: str, small: str) -> dict[str, Any]:
    """Load or draw, and return how much private memory that took at its peak, beside what the rank holds after."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = _config(2)

    def load(place: str, sizes: dict[str, Any]) -> Any:
        if how == "pretrained":
            return from_pretrained(place, config=config)[0]
        if how == "config":
            return from_config(LlamaConfig(**sizes), seed=1, model_class=LlamaForCausalLM, config=config)[0]
        torch.manual_seed(0)
        return initialize(model=LlamaForCausalLM(LlamaConfig(**sizes)), config=config)[0]

    # A small model first: what is imported and started with it does not count for the large one.
    load(small, {**_LARGE, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 96, "num_hidden_layers": 1})
    gc.collect()
    before = _private()
    watch = _Watch()
    with watch:
        engine = load(folder, _LARGE)
    own = [one.numel() * one.element_size() for one in engine.module.parameters()]
    return {"peak": watch.peak - before, "own": sum(own), "largest": max(own), "after": _private() - before}


def _private() -> int:
    """Return the bytes of memory that belong to this process alone.

    Not Private_Dirty, which counts the pages of a mapped file too while that is young and not on the disk yet.
    """
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Anonymous in /proc/self/smaps_rollup")


class _Watch:
    """Measures the peak of the private memory, from another thread and at every read."""

    def __init__(self) -> None:
        self.peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watch:
        from tpinit.runtime.loading.lazy_tensors import StoredTensor

        self._leaf, self._original = StoredTensor, StoredTensor.read_into

        def read_into(leaf: Any, out: Any, box: Any) -> None:
            self._original(leaf, out, box)
            self.peak = max(self.peak, _private())

        StoredTensor.read_into = read_into  # type: ignore[method-assign]  # for one load
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaf.read_into = self._original  # type: ignore[method-assign]  # as it was
        self._over.set()
        self._thread.join()
        self.peak = max(self.peak, _private())

    def _look(self) -> None:
        while not self._over.is_set():
            self.peak = max(self.peak, _private())
            time.sleep(0.0005)
            os.sched_yield()
