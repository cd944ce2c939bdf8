"""Reads the config outside the section: the precision (D6), and keys that would be silently ignored.

Other top-level keys belong to the rest of DeepSpeed and are not checked. A misspelled section or precision
block, or a key of the section at the top level, would be silently ignored, so each is a problem that names the
right key (D8).
"""

from __future__ import annotations

from tpinit.reference.errors import Problem
from tpinit.reference.fields import PARTITION_CONFIG, SECTION, TP, named
from tpinit.reference.spellings import is_absent, is_near, printable, show
from tpinit.spec.vocabulary import DType

__all__ = ["check_top_level", "read_precision"]

_PRECISION = ("bf16", "fp16", "bfloat16")
_BLOCKS = ("tensor_parallel", *_PRECISION)
_STEMS = ("tensorparallel", "tensormodelparallel", "autotp")


def _section_paths() -> dict[str, str]:
    """Return the path of every key of the section, by the key's name without case and punctuation."""
    paths: dict[str, str] = {}
    for block, fields in (
        ("tensor_parallel", SECTION),
        ("tensor_parallel.tp", TP),
        ("tensor_parallel.partition_config", PARTITION_CONFIG),
    ):
        for name in named(fields):
            paths.setdefault(_folded(name), f"{block}.{name}")
    paths["tensorparallel"] = "tensor_parallel"
    paths["tpsize"] = paths["autotpsize"]
    return paths


def _folded(key: str) -> str:
    return "".join(letter for letter in key.casefold() if letter.isalnum())


def check_top_level(config: dict[str, object], problems: list[Problem]) -> None:
    """Add a problem for every top-level key that is misspelled, or that belongs inside the section."""
    paths = _section_paths()
    for key, value in config.items():
        if key in _BLOCKS:
            continue
        right = _right_key(_folded(key), paths)
        if right is None:
            continue
        message = f"unknown key, which would be ignored; {right} was probably meant"
        fix = f'rename it to "{right}"' if right in _BLOCKS else f"move it to {right}"
        if right.endswith(".mpu"):
            message, fix = "an mpu in the config is malformed (D11)", "pass it to initialize(mpu=...)"
        problems.append(Problem(printable(key), show(value), message, fix))


def _right_key(folded: str, paths: dict[str, str]) -> str | None:
    if folded in paths:
        return paths[folded]
    if folded == "float16":
        return "fp16"  # one edit away from bfloat16, but it means fp16
    for block in _PRECISION:
        if is_near(folded, block, 1):
            return block
    for name, path in paths.items():
        if len(name) >= 10 and is_near(folded, name, 2):
            return path
    if folded.startswith(_STEMS):
        return paths["autotpsize"] if folded.endswith(("size", "degree")) else "tensor_parallel"
    return None


def read_precision(config: dict[str, object], problems: list[Problem]) -> DType | None:
    """Return the dtype of the enabled precision block, or None (D6). Two enabled blocks are a problem."""
    new, old = config.get("bf16"), config.get("bfloat16")
    if new is not None and old is not None:
        message = '"bf16" and "bfloat16" are two names of one block'
        problems.append(Problem("bfloat16", show(old), message, 'keep "bf16" and leave the other out'))
    name = "bf16" if new is not None else "bfloat16"
    bf16 = _enabled(config.get(name), name, problems)
    fp16 = _enabled(config.get("fp16"), "fp16", problems)
    if bf16 and fp16:
        message = f"{name}.enabled and fp16.enabled are both true (D6)"
        problems.append(Problem(f"{name}.enabled", "true", message, "enable one of them"))
        return None
    return DType.BF16 if bf16 else DType.FP16 if fp16 else None


def _enabled(block: object, path: str, problems: list[Problem]) -> bool:
    fields = block if isinstance(block, dict) else {}
    if block is not None and not isinstance(block, dict):
        fix = f'write "{path}": {{"enabled": true}}, or leave it out'
        problems.append(Problem(path, show(block), "this must be an object", fix))
    for key, value in fields.items():
        if key != "enabled" and is_near(_folded(key), "enabled", 2):
            message = 'unknown key, which would be ignored; "enabled" was probably meant'
            problems.append(Problem(f"{path}.{printable(key)}", show(value), message, 'write "enabled"'))
    enabled = fields.get("enabled")
    if not is_absent(enabled) and not isinstance(enabled, bool):
        message = 'this must be true, false or "auto"'
        problems.append(Problem(f"{path}.enabled", show(enabled), message, "write true or false, without quotes"))
    return enabled is True
