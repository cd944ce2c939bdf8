"""Spellings of dtypes (D8) and sizes (D7), the nearest legal word, and values shortened for messages."""

from __future__ import annotations

from collections.abc import Iterable

from tpinit.spec.vocabulary import DType

__all__ = [
    "AUTO",
    "DTYPE_SPELLINGS",
    "MAX_DIGITS",
    "dtype_named",
    "is_absent",
    "is_near",
    "nearest",
    "plain_int",
    "printable",
    "show",
    "show_int",
    "too_long",
]

AUTO = "auto"

MAX_DIGITS = 4300
"""The longest integer that is read, in decimal digits: Python's default limit for converting text to int."""

_SHOWN = 60

# D8: every spelling, in the order in which they are offered to users.
DTYPE_SPELLINGS: dict[str, DType] = {
    prefix + word: dtype
    for prefix in ("", "torch.")
    for dtype, words in (
        (DType.FP32, ("fp32", "float32", "float")),
        (DType.FP16, ("fp16", "float16", "half")),
        (DType.BF16, ("bf16", "bfloat16")),
    )
    for word in words
}

_TOO_LONG: int = 10**MAX_DIGITS


def is_absent(value: object) -> bool:
    """Return whether a value means absent: null and `"auto"` do, for every field (D3)."""
    return value is None or (isinstance(value, str) and value == AUTO)


def dtype_named(value: object) -> DType | None:
    """Return the dtype that a spelling, a `DType` or a torch dtype means (D8), or None for anything else.

    A torch dtype is recognised by the name of its type and by its str(), so torch is never imported.
    """
    if isinstance(value, DType):
        return value
    if isinstance(value, str):
        return DTYPE_SPELLINGS.get(value)
    if type(value).__name__ != "dtype":
        return None
    spelling = str(value)
    return DTYPE_SPELLINGS.get(spelling) if spelling.startswith("torch.") else None


def too_long(value: int) -> bool:
    """Return whether an integer has more than `MAX_DIGITS` digits, without converting it to text."""
    return abs(value) >= _TOO_LONG


def nearest(word: object, legal: Iterable[str]) -> str | None:
    """Return the legal word nearest to `word`, or None if none is near."""
    # Imported here: only an error needs it.
    import difflib

    if not isinstance(word, str):
        return None
    folded = {candidate.casefold(): candidate for candidate in legal}
    start = word.strip().casefold()
    # A truncated word stands for the full one: "bfloat" is bfloat16, though "float" has more letters in common.
    found = sorted((whole for whole in folded if len(start) > 2 and whole.startswith(start)), key=len)
    found = found or difflib.get_close_matches(start, folded, cutoff=0.5)
    return folded[found[0]] if found else None


def plain_int(value: object) -> int | None:
    """Return an integer as Python's own int; None for a truth value and for anything that is no integer.

    A subclass can compare and convert as it likes. Its own value counts, and nothing else of it goes on.
    """
    return int.__index__(value) if isinstance(value, int) and not isinstance(value, bool) else None


def show_int(value: int) -> str:
    """Return an integer in decimal, or its length in bits if it has more than `MAX_DIGITS` digits."""
    return f"an integer of {value.bit_length()} bits" if too_long(value) else _decimal(value)


def show(value: object) -> str:
    """Return a value as JSON writes it (if JSON can), on one line and shortened.

    Never raises: an object whose repr() fails is shown by its type.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        text = show_int(int.__index__(value))
    elif isinstance(value, str):
        text = f'"{printable(value)}"'
    else:
        text = _text(value)
    return _shortened(text)


def printable(text: str) -> str:
    """Return a text on one line, shortened, with characters that can't be printed escaped."""
    # str.__str__, because a str enum has a __str__ of its own
    few = _shortened(str.__str__(text))
    return _shortened("".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in few))


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN + 2 else f"{text[: _SHOWN - 15]}...{text[-12:]}"


def _text(value: object) -> str:
    try:
        return printable(" ".join(repr(value).split()))
    except Exception:  # a user's own __repr__ may raise anything; the problem being reported matters more
        return f"<{type(value).__name__}>"


def _decimal(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # the interpreter's limit on digits is a setting and may be lower than ours
        return f"an integer of {value.bit_length()} bits"


def is_near(one: str, other: str, most: int) -> bool:
    """Return whether at most `most` edits part two words: a letter inserted, dropped, replaced or swapped."""
    # The cheap tests first, because a key may be long: one edit changes the set of letters by at most two.
    if abs(len(one) - len(other)) > most or len({*one} ^ {*other}) > 2 * most:
        return False
    return _distance(one, other) <= most


def _distance(one: str, other: str) -> int:
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, target in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != target))
            if i > 1 and one[i - 2 : i] == other[j - 2 : j][::-1]:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]
