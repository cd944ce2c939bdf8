"""The lines of a JSONL file: what each may be, and what is wrong with those that are something else.

Imports no torch: the command reads a file before it starts ranks.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpinit.reference.spellings import nearest, show
from tpinit.runtime.errors import DataError

__all__ = ["FORMS", "Line", "LineFile", "LineProblem", "raise_problems"]

FORMS = {"text": ("text",), "messages": ("messages",), "pair": ("prompt", "completion")}
"""The keys of each form of a line."""

_LEGAL = '"text", "messages", or "prompt" and "completion"'
_KEYS = tuple(key for keys in FORMS.values() for key in keys)
_SHOWN = 20  # bad lines in an error

Messages = list[Mapping[str, Any]]


class LineProblem(ValueError):
    """What is wrong with one line, without its number."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line that can be trained on.

    `text`: plain text, in the form "text". `prompt`, `completion`: both texts, or both lists of messages, in the form
    "pair"; in the form "messages" the conversation is the completion and the prompt is empty. `number` counts from 1.
    """

    number: int
    form: str
    text: str = ""
    prompt: str | Messages = ""
    completion: str | Messages = ""


@dataclass(slots=True)
class LineFile:
    """A JSONL file. Iterating reads it once and fills the rest.

    `problems` has (number, text) of each line that can't be used, which the iteration leaves out; `ignored` counts the
    keys that no form has. Blank lines are skipped.
    """

    path: Path
    problems: list[tuple[int, str]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    count: int = 0

    def __iter__(self) -> Iterator[Line]:
        self.problems.clear()
        self.ignored.clear()
        self.count = 0
        try:
            with self.path.open("rb") as file:
                for number, raw in enumerate(file, 1):
                    if not raw.strip():
                        continue
                    self.count += 1
                    try:
                        page = _object(raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw)
                        line = _line(number, page)
                    except LineProblem as problem:
                        self.problems.append((number, str(problem)))
                        continue
                    self.ignored.update(key for key in page if key not in _KEYS)
                    yield line
        except OSError as error:
            raise DataError(f"{self.path} can't be read: {error.strerror}") from error
        if not self.count:
            raise DataError(f"{self.path} has no lines: write one JSON object a line, with {_LEGAL}")

    def check(self) -> None:
        """Read the whole file. Raises DataError for lines that can't be used."""
        for _ in self:
            pass
        raise_problems(self.path, self.problems, self.count)


def raise_problems(path: Path, problems: list[tuple[int, str]], count: int) -> None:
    """Raise DataError with a line for each problem, if there is one."""
    if not problems:
        return
    lines = [f"{path}: {len(problems)} of {count} lines can't be used:"]
    lines += [f"  line {number}: {text}" for number, text in sorted(problems)[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  and {len(problems) - _SHOWN} more")
    raise DataError("\n".join(lines))


def _object(raw: bytes) -> dict[str, Any]:
    try:
        page = json.loads(raw.decode("utf-8"), object_pairs_hook=_unrepeated)
    except UnicodeDecodeError as error:
        raise LineProblem(f"byte {error.start + 1} is not UTF-8: save the file as UTF-8, uncompressed") from None
    except json.JSONDecodeError as error:
        raise LineProblem(
            f"is not JSON: {error.msg} at column {error.colno}; write a whole JSON object on each line"
        ) from None
    except RecursionError:
        raise LineProblem("is nested too deeply to be read") from None
    except LineProblem:
        raise
    except ValueError as error:  # an integer of too many digits
        raise LineProblem(f"can't be read: {error}") from None
    if not isinstance(page, dict):
        raise LineProblem(f"is {show(page)}, and must be an object with {_LEGAL}")
    return page


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        key = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise LineProblem(f"has the key {key!r} twice: keep one of them")
    return found


def _line(number: int, page: dict[str, Any]) -> Line:
    forms = [form for form, keys in FORMS.items() if any(key in page for key in keys)]
    if not forms:
        near = next(((key, right) for key in page if (right := nearest(key, _KEYS)) is not None), None)
        hint = f" (has {near[0]!r}: did you mean {near[1]!r}?)" if near else ""
        raise LineProblem(f"has none of the keys {_LEGAL}{hint}")
    if len(forms) > 1:
        given = " and ".join(repr(key) for key in _KEYS if key in page)
        raise LineProblem(f"has {given}: keep one of {_LEGAL}")
    missing = [key for key in FORMS[forms[0]] if key not in page]
    if missing:
        raise LineProblem(f"has no {missing[0]!r}, which belongs to {next(key for key in _KEYS if key in page)!r}")
    if forms[0] == "text":
        return Line(number, "text", text=_text(page["text"], "text"))
    if forms[0] == "messages":
        return Line(number, "messages", prompt=[], completion=_messages(page["messages"], "messages"))
    prompt, completion = page["prompt"], page["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return Line(number, "pair", prompt=_messages(prompt, "prompt"), completion=_messages(completion, "completion"))
    return Line(number, "pair", prompt=_text(prompt, "prompt", True), completion=_text(completion, "completion"))


def _text(value: Any, where: str, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        both = "" if where == "text" else "; prompt and completion may also both be lists of messages"
        raise LineProblem(f"{where} is {show(value)}, and must be a text{both}")
    if not value and not may_be_empty:
        raise LineProblem(f"{where} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise LineProblem(f"{where} has half of a character at {error.start + 1} ({value[error.start]!r})") from None
    return value


def _messages(value: Any, where: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise LineProblem(f"{where} is {show(value)}, and must be a list of messages")
    for index, message in enumerate(value):
        place = f"{where}[{index}]"
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise LineProblem(f'{place} is {show(message)}, and must be an object with "role" and "content"')
        _text(message["role"], f"{place}.role")
        _text(message["content"], f"{place}.content", may_be_empty=True)
    return value
