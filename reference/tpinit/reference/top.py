"""The config outside the section: the precision (D6), and keys that would be silently ignored.

Other top-level keys belong to the rest of DeepSpeed and are left alone. A key that is almost the section,
almost a precision block, or a key of the section that stands outside of it, would be ignored without a
word: it is a problem that names the right key (D8).
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


def _homes() -> dict[str, str]:
    """Every key of the section by its name without punctuation, with the path where it belongs."""
    homes: dict[str, str] = {}
    for block, fields in (
        ("tensor_parallel", SECTION),
        ("tensor_parallel.tp", TP),
        ("tensor_parallel.partition_config", PARTITION_CONFIG),
    ):
        for name in named(fields):
            homes.setdefault(_folded(name), f"{block}.{name}")
    homes["tensorparallel"] = "tensor_parallel"
    homes["tpsize"] = homes["autotpsize"]
    return homes


def _folded(key: str) -> str:
    return "".join(letter for letter in key.casefold() if letter.isalnum())


def check_top_level(config: dict[str, object], problems: list[Problem]) -> None:
    """Add a problem for every top-level key that is a near miss, or that belongs inside the section."""
    homes = _homes()
    for key, value in config.items():
        if key in _BLOCKS:
            continue
        right = _right_key(_folded(key), homes)
        if right is None:
            continue
        message = f"unknown key, which would be ignored; {right} was probably meant"
        fix = f'rename it to "{right}"' if right in _BLOCKS else f"move it to {right}"
        if right.endswith(".mpu"):
            message, fix = "an mpu in the config is malformed (D11)", "pass it to initialize(mpu=...)"
        problems.append(Problem(printable(key), show(value), message, fix))


def _right_key(folded: str, homes: dict[str, str]) -> str | None:
    if folded in homes:
        return homes[folded]
    if folded == "float16":
        return "fp16"  # one letter from bfloat16, and yet not meant as that
    for block in _PRECISION:
        if is_near(folded, block, 1):
            return block
    for name, home in homes.items():
        if len(name) >= 10 and is_near(folded, name, 2):
            return home
    if folded.startswith(_STEMS):
        return homes["autotpsize"] if folded.endswith(("size", "degree")) else "tensor_parallel"
    return None


def read_precision(config: dict[str, object], problems: list[Problem]) -> DType | None:
    """D6: the dtype of the block that is enabled, None when none is. Both enabled is a problem."""
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
