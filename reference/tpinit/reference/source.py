"""Loads a config (a mapping, a path, base64 text, or None) into a private copy as plain data.

The copy has dicts with string keys, lists, tuples and leaves. Leaves that are not plain data (process groups,
classes, torch dtypes) are kept by reference and never copied. The caller's object is never changed (D10).
Whatever makes the data malformed as a config is a `Problem` with a path.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.spellings import MAX_DIGITS, printable, show, too_long

__all__ = ["MAX_BYTES", "MAX_DEPTH", "plain_config"]

MAX_DEPTH = 64
"""The most levels of nested objects and lists in a config; the config itself is the first level."""

MAX_BYTES = 1024 * 1024
"""The largest file that is read as a config."""

MAX_VALUES = 200_000
"""The most values in a config, all levels together."""

_ROOT = "config"
_PERIOD = "steps_per_print"  # infinite for "never", as accelerate writes it


@dataclass(frozen=True, slots=True)
class _Pairs:
    """An object as a text has it: all pairs in order, also those that repeat a key."""

    pairs: list[tuple[str, object]]


@dataclass(frozen=True, slots=True)
class _LongInteger:
    """An integer literal with too many digits for Python to read."""

    digits: int


class _HjsonFloat(float):
    """A float that hjson can't turn into an integer: it would read 2.0 as 2, which D7 distinguishes."""

    def __int__(self) -> int:
        return int(not self)  # never equal to the float itself; defined for infinities too


def plain_config(config: object) -> tuple[dict[str, object] | None, list[Problem]]:
    """Return a private plain copy of a config, and the problems of its data.

    `config` is a Mapping, the path of a JSON or HJSON file, base64 of a JSON object (standard or urlsafe
    alphabet), or None for no config. The copy is None for None. Raises ConfigError if there is nothing to
    copy: the file does not exist, is not text, or does not contain an object.
    """
    if config is None:
        return None, []
    problems: list[Problem] = []
    data = _load(config)
    if not isinstance(data, (Mapping, _Pairs)):
        raise _refusal(show(data), "a config must be an object at its top level", 'write { "key": value, ... }')
    return _Copier(problems).copy_object(data, "", (id(data),)), problems


# --- loading ---------------------------------------------------------------------------


def _load(config: object) -> object:
    if isinstance(config, Mapping):
        return config
    if isinstance(config, str):
        return _parse_file(config) if os.path.exists(config) else _parse_base64(config)
    if isinstance(config, os.PathLike):
        return _parse_file(os.fsdecode(config))
    raise _refusal(
        show(config),
        f"a config can't be of type {type(config).__name__}",
        "give a dict, the path of a JSON or HJSON file, base64 of a JSON object, or None for no config",
    )


def _parse_file(path: str) -> object:
    if os.path.isdir(path):
        raise _refusal(show(path), "this is a directory", "give the path of the config file itself")
    if not os.path.exists(path):
        raise _refusal(show(path), "there is no such file", "check the path")
    # Reading a pipe or a device could block, or never end.
    if not os.path.isfile(path):
        raise _refusal(show(path), "this is not a regular file", "give the path of a JSON or HJSON file")
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refusal(show(path), f"this file can't be read: {error.strerror or error}", "check the path") from error
    if len(raw) > MAX_BYTES:
        raise _refusal(show(path), f"a config has at most {MAX_BYTES} bytes", "check that this is the config")
    return _parse(_decode(raw, path), path)


def _parse_base64(text: str) -> object:
    """Read base64 of an object. Raises ConfigError, with a guess at what else the text is."""
    import base64
    import binascii

    if text.lstrip().startswith("{"):
        raise _refusal(
            show(text), "this is the text of a config, not a path or base64", "parse it and give the dict (json.loads)"
        )
    compact = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        raw = base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
        decoded = raw.decode("utf-8-sig")
    except (binascii.Error, ValueError):
        decoded = ""
    if not decoded.lstrip().startswith("{"):
        raise _refusal(
            show(text),
            "this is neither the path of an existing file nor base64 of a JSON object",
            "check the path, or give the config as a dict",
        )
    return _parse(decoded, "the base64 text")


def _decode(raw: bytes, path: str) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"this file is not UTF-8 text: byte {raw[error.start]:#04x} at offset {error.start}"
        raise _refusal(show(path), message, "save it as UTF-8") from error
    if not text.strip():
        raise _refusal(show(path), "this file is empty", "write at least {}")
    return text


# --- parsing -----------------------------------------------------------------------------


def _parse(text: str, origin: str) -> object:
    """Parse JSON, else HJSON. Repeated keys and integers that are too long are kept: the copier reports them."""
    import json

    try:
        return json.loads(text, object_pairs_hook=_Pairs, parse_int=_integer)
    except RecursionError as error:
        raise ConfigError([_deep("")]) from error
    except json.JSONDecodeError as error:
        return _parse_hjson(text, origin, error)


def _parse_hjson(text: str, origin: str, not_json: Exception) -> object:
    try:
        import hjson
    except ImportError:
        raise _refusal(
            show(origin),
            f"this is not JSON: {not_json}",
            "correct it; to read HJSON (comments, trailing commas), install tpinit[hjson]",
        ) from not_json
    loads: Callable[..., Any] = hjson.loads
    try:
        return loads(text, object_pairs_hook=_Pairs, parse_int=_integer, parse_float=_HjsonFloat)
    except RecursionError as error:
        raise ConfigError([_deep("")]) from error
    except Exception as error:  # the hjson library lets IndexError and the like out on texts that stop early
        raise _refusal(
            show(origin), f"this is neither JSON ({not_json}) nor HJSON ({error})", "correct the text at that place"
        ) from error


def _integer(literal: str) -> int | _LongInteger:
    digits = len(literal.lstrip("-"))
    if digits > MAX_DIGITS:
        return _LongInteger(digits)
    try:
        return int(literal)
    except ValueError:  # the interpreter's own limit on digits may be set lower than ours
        return _LongInteger(digits)


# --- copying ----------------------------------------------------------------


@dataclass(slots=True)
class _Copier:
    """Copies plain data, and adds a problem, with its path, for everything that is wrong with it."""

    problems: list[Problem]
    left: int = MAX_VALUES

    def copy(self, value: object, path: str, above: tuple[int, ...]) -> object:
        """Copy one value; a leaf that is not plain is kept by reference. `above` has the ids of all parents."""
        self.left -= 1
        if self.left < 0:
            # Shared parts can make the copy far larger than the data. The problem is added once.
            if self.left == -1:
                self._note("", "", f"a config has at most {MAX_VALUES} values", "check that this is the config")
            return None
        if isinstance(value, (Mapping, _Pairs, list, tuple)):
            return self._copy_container(value, path, above)
        if isinstance(value, _LongInteger) or (type(value) is int and too_long(value)):
            given = f"an integer of {value.digits} digits" if isinstance(value, _LongInteger) else show(value)
            self._note(path, given, f"an integer has at most {MAX_DIGITS} digits", "give a smaller number")
            return None
        if isinstance(value, float) and not math.isfinite(value) and (path != _PERIOD or value != math.inf):
            self._note(path, repr(float(value)), "a number must be finite", "give a finite number")
            return None
        return float.__float__(value) if isinstance(value, _HjsonFloat) else value

    def _copy_container(
        self,
        value: Mapping[Any, object] | _Pairs | list[object] | tuple[object, ...],
        path: str,
        above: tuple[int, ...],
    ) -> object:
        if id(value) in above:
            self._note(path, "", "a config can't contain itself", "remove the reference")
        elif len(above) == MAX_DEPTH:
            self.problems.append(_deep(path))
        elif isinstance(value, (list, tuple)):
            inside = (*above, id(value))
            items = [self.copy(item, f"{path}[{index}]", inside) for index, item in enumerate(value)]
            return tuple(items) if isinstance(value, tuple) else items
        else:
            return self.copy_object(value, path, (*above, id(value)))
        return None

    def copy_object(self, value: Mapping[Any, object] | _Pairs, path: str, above: tuple[int, ...]) -> dict[str, object]:
        """Copy an object. Its keys must be strings, each given once."""
        copy: dict[str, object] = {}
        repeated: set[str] = set()
        # Pairs, because a text may repeat a key.
        for key, item in value.pairs if isinstance(value, _Pairs) else value.items():
            if not isinstance(key, str):
                self._note(path, show(key), "a key must be a string", "write it in quotes")
                continue
            name = str.__str__(key)
            shown = printable(name)
            below = f"{path}.{shown}" if path else shown
            if name not in copy:
                copy[name] = self.copy(item, below, above)
            elif name not in repeated:
                repeated.add(name)
                self._note(below, "", f'the key "{shown}" is given more than once', "keep one of them")
        return copy

    def _note(self, path: str, given: str, message: str, fix: str) -> None:
        self.problems.append(Problem(path or _ROOT, given, message, fix))


def _deep(path: str) -> Problem:
    # The path is as long as the data is deep; its shortened form is enough to find the place.
    return Problem(printable(path) or _ROOT, "", f"a config nests at most {MAX_DEPTH} levels", "flatten it")


def _refusal(given: str, message: str, fix: str) -> ConfigError:
    return ConfigError([Problem(_ROOT, given, message, fix)])
