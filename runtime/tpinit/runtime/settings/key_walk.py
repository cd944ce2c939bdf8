"""Walk a config along the table of keys: refuse what is not implemented, note what is accepted and does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tpinit.reference.errors import Problem
from tpinit.reference.spellings import is_absent, nearest, printable, show
from tpinit.runtime.settings.keys import KEYS, SWITCHES, Effect, Key
from tpinit.runtime.settings.schema import Note

__all__ = ["Reading", "check_keys", "is_comment"]

_SWITCHED = frozenset(key.path for key in SWITCHES)
_COMMENTS = ("comment", "comments")
# Names that DeepSpeed passes over, for what it reads under another one.
_MEANT = {"max_grad_norm": "gradient_clipping", "micro_batch_size_per_gpu": "train_micro_batch_size_per_gpu"}


@dataclass(slots=True)
class Reading:
    """What was found in a config: malformed values, settings that are refused, and notes for the log."""

    problems: list[Problem] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


def is_comment(key: str) -> bool:
    """Return whether a key is a comment: its name begins with an underscore, a slash or a hash, or is "comment"."""
    return key.startswith(("_", "/", "#")) or key.lower() in _COMMENTS


def check_keys(config: Mapping[str, object], reading: Reading) -> None:
    """Look up every key of a config, and every key of its sections, in the table."""
    for name, value in config.items():
        if is_comment(name) or is_absent(value):
            continue
        key = KEYS.get(name)
        if key is None:
            reading.refusals.append(_unknown(name, value, [path for path in KEYS if "." not in path]))
        elif key.effect is Effect.SECTION and isinstance(value, Mapping):
            _check_section(name, value, reading)
        elif key.effect is Effect.SECTION:
            if not isinstance(value, bool):
                form = f'write "{name}": {{...}}'
                reading.problems.append(Problem(name, show(value), "this must be an object", form))
        elif name not in _SWITCHED or _is_on(value):
            _check_value(key, value, reading)


def _check_section(section: str, values: Mapping[str, object], reading: Reading) -> None:
    for name, value in values.items():
        path = f"{section}.{name}"
        if is_comment(name) or is_absent(value):
            continue
        key = KEYS.get(path)
        if key is None:
            start = f"{section}."
            known = [known.removeprefix(start) for known in KEYS if known.startswith(start)]
            reading.refusals.append(_unknown(name, value, known, start))
        elif name.startswith("offload_") and isinstance(value, Mapping) and _stays_on_device(value):
            continue
        else:
            _check_value(key, value, reading)


def _check_value(key: Key, value: object, reading: Reading) -> None:
    """Refuse or note a value; one that changes nothing passes."""
    if key.effect in (Effect.HONOURED, Effect.NO_EFFECT) or value in key.neutral:
        return
    shown = f"{key.path} = {show(value)}"
    if key.effect is Effect.LOGGED:
        reading.notes.append(Note(f"{shown}: {key.note}"))
    else:
        reading.refusals.append(f"{shown}: {key.note}; {key.fix}")


def _is_on(value: object) -> bool:
    """Return whether a section is switched on: by its own `enabled`, else by one inside of it."""
    if not isinstance(value, Mapping):
        return value is not False
    if "enabled" in value:
        return not is_absent(value["enabled"]) and value["enabled"] is not False
    return any(_is_on(inner) for inner in value.values() if isinstance(inner, Mapping))


def _stays_on_device(offload: Mapping[str, object]) -> bool:
    device = offload.get("device")
    return is_absent(device) or device == "none"


def _unknown(name: str, value: object, known: list[str], start: str = "") -> str:
    near = _MEANT.get(name) or nearest(name, known)
    hint = f"; did you mean {start}{near}?" if near else ""
    return f"{start}{printable(name)} = {show(value)}: this key is not known{hint}"
