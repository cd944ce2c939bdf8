"""`engine.save_pretrained`: the whole model as a directory of transformers, with its tokenizer."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from tpinit.runtime.checkpoint.ranks import agree
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.agreement import RankReport

if TYPE_CHECKING:
    from tpinit.runtime.training.engine import Engine

__all__ = ["save_pretrained"]

_PREPROCESSING = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.spm"),
    *("*.tiktoken", "normalizer.json", "chat_template*", "additional_chat_templates/*.jinja", "*processor_config.json"),
)
"""The files of tokenizers and processors of transformers, as patterns in their directory."""
_log = logging.getLogger("tpinit")


def save_pretrained(
    engine: Engine, save_directory: str | os.PathLike[str], *args: Any, tokenizer: Any = None, **kwargs: Any
) -> None:
    """Write the whole model, or its peft adapters, as `engine.module.save_pretrained`, and the tokenizer beside it.

    Call it on all ranks; rank 0 writes. `tokenizer` is a tokenizer or processor of transformers. Without one, the files
    of it are copied from the local directory that the model came from (`name_or_path`); adapters are written alone.
    Raises EngineError for a model that has no `save_pretrained`, CheckpointError on all ranks if rank 0 can't write,
    and what `engine.module.save_pretrained` raises.
    """
    module: Any = engine.module
    if not hasattr(module, "save_pretrained"):
        raise EngineError(
            f"save_pretrained: a {type(module).__qualname__} is no model of transformers or peft; call "
            "engine.save_16bit_model(folder)"
        )
    sharded = engine.groups.tp.group is not None
    if sharded:
        module.save_pretrained(save_directory, *args, **kwargs)

    def write(_: RankReport) -> None:
        if dist.get_rank() == 0:
            if not sharded:  # every rank has the whole model
                type(module).save_pretrained(module, save_directory, *args, **kwargs)
            _write_tokenizer(module, Path(save_directory), tokenizer)

    agree("save_pretrained", write)


def _write_tokenizer(module: Any, folder: Path, tokenizer: Any) -> None:
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        return
    source = Path(getattr(module, "name_or_path", None) or "")
    if hasattr(module, "peft_config") or source == Path() or not source.is_dir() or source.samefile(folder):
        return
    copied = [path.relative_to(source) for pattern in _PREPROCESSING for path in source.glob(pattern) if path.is_file()]
    for name in copied:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    _log.info("save_pretrained: %d files of the tokenizer are those of %s", len(copied), source)
