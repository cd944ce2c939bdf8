"""Read plain data from a file or stdin: JSON, HJSON, or the pipe tables of a Markdown text."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from tpinit.decision_tables.markdown import read_markdown
from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.spellings import printable, show

__all__ = ["MAX_BYTES", "load"]

MAX_BYTES = 8 * 1024 * 1024
"""The largest file that is read as a table."""


def load(file: str, number: int | None = None) -> object:
    """Return the plain data of a file (`-`: stdin); `number` picks a table (from 1) of a Markdown text.

    Raises ConfigError where there is no such file, or its text is not JSON, HJSON or a Markdown table.
    """
    if file == "-":
        return loads(_decode(sys.stdin.buffer.read(MAX_BYTES + 1), "stdin"), "stdin", number)
    if not os.path.exists(file):
        raise _refusal(file, "there is no such file", "check the path")
    if not os.path.isfile(file):  # a pipe or a device could block or never end
        raise _refusal(file, "this is not a regular file", "give the path of a table, or - for stdin")
    try:
        with open(file, "rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refusal(file, f"this file can't be read: {error.strerror or error}", "check the path") from error
    return loads(_decode(raw, file), file, number)


def loads(text: str, origin: str, number: int | None = None) -> object:
    """Return the plain data of a text; errors refer to it as `origin`."""
    if origin.endswith((".md", ".markdown")) or any(line.lstrip().startswith("|") for line in text.splitlines()):
        return read_markdown(text, number)
    if number is not None:
        raise _refusal(
            origin, "--table picks a table of a Markdown text, and this is not Markdown", "leave --table out"
        )
    repeated: list[str] = []

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        data: dict[str, object] = {}
        for key, value in items:
            if key in data:
                repeated.append(key)
            data[key] = value
        return data

    data = _parse(text, origin, pairs)
    if repeated:
        raise ConfigError(
            Problem(printable(key), "", "this key is given more than once in one object", "keep one of them")
            for key in dict.fromkeys(repeated)
        )
    return data


def _decode(raw: bytes, origin: str) -> str:
    if len(raw) > MAX_BYTES:
        raise _refusal(origin, f"a table has at most {MAX_BYTES} bytes", "check that this file is a table")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"this is not UTF-8 text: byte {raw[error.start]:#04x} at offset {error.start}"
        raise _refusal(origin, message, "save it as UTF-8") from error
    if not text.strip():
        raise _refusal(origin, "there is no text in it", "see 'tpinit check-table --help' for a table to start from")
    return text


def _parse(text: str, origin: str, pairs: Callable[..., object]) -> object:
    deep = _refusal(origin, "this nests too deeply to be a table", "flatten it")
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError as error:
        raise deep from error
    except ValueError as error:  # a JSONDecodeError, or an integer too long to be read
        not_json = error
    try:
        import hjson
    except ImportError:
        raise _refusal(
            origin, f"this is not JSON: {not_json}", "correct it; to read HJSON, install tpinit[hjson]"
        ) from not_json
    loads_hjson: Callable[..., Any] = hjson.loads
    try:
        return loads_hjson(text, object_pairs_hook=pairs)
    except RecursionError as error:
        raise deep from error
    except Exception as error:  # the hjson library raises IndexError and other errors for truncated texts
        raise _refusal(
            origin,
            f"this is neither JSON ({not_json}) nor HJSON ({printable(str(error))})",
            "correct the text at that place",
        ) from error


def _refusal(origin: str, message: str, fix: str) -> ConfigError:
    return ConfigError([Problem("table", show(origin), message, fix)])
