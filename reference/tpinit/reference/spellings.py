"""How values are spelled and shown: dtypes (D8), sizes (D7), nearest legal words, shortened values."""

from __future__ import annotations

from collections.abc import Iterable

from tpinit.spec.vocabulary import DType

__all__ = [
    "AUTO",
    "DTYPE_SPELLINGS",
    "MAX_DIGITS",
    "distance",
    "dtype_named",
    "is_absent",
    "nearest",
    "printable",
    "show",
    "show_int",
    "too_long",
]

AUTO = "auto"

MAX_DIGITS = 4300
"""The longest integer that is read, in decimal digits: Python's own default limit for turning text into int."""

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

# A size that is longer than this many bits has more than MAX_DIGITS digits (3.3219... bits a digit).
_MAX_BITS = int(MAX_DIGITS * 3.32192809488736) + 1


def is_absent(value: object) -> bool:
    """D3: null and `"auto"` mean absent, for every field."""
    return value is None or (isinstance(value, str) and value == AUTO)


def dtype_named(value: object) -> DType | None:
    """Return the dtype that a spelling, a `DType` or a torch dtype means (D8), or None for anything else.

    A torch dtype is recognised by its type's name and its text, so torch is never imported.
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
    """Tell whether an integer has more than `MAX_DIGITS` digits, without turning it into text."""
    return value.bit_length() > _MAX_BITS


def nearest(word: object, legal: Iterable[str]) -> str | None:
    """Return the legal word nearest to what was given, or None when none is near."""
    # Imported here: only an error needs it.
    import difflib

    words = list(legal)
    if not isinstance(word, str) or not words:
        return None
    folded = {candidate.casefold(): candidate for candidate in reversed(words)}
    start = word.strip()[:200].casefold()
    # A word cut short is meant whole: "bfloat" is bfloat16, though "float" has more letters in common.
    found = sorted((whole for whole in folded if len(start) > 2 and whole.startswith(start)), key=len)
    found = found or difflib.get_close_matches(start, list(folded), n=1, cutoff=0.5)
    return folded[found[0]] if found else None


def show_int(value: int) -> str:
    """Return an integer as users write it; one too long for that, by its length."""
    return f"an integer of {value.bit_length()} bits" if too_long(value) else _decimal(value)


def show(value: object) -> str:
    """Return what was given as JSON would have it (where JSON has a word for it), shortened to one line.

    Never raises: an object whose own text can't be had is shown by its type.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        text = show_int(int(value))
    elif isinstance(value, str):
        text = f'"{printable(value)}"'
    else:
        text = _text(value)
    return _shortened(text)


def printable(text: str) -> str:
    """Return a text on one line that any terminal can show, shortened."""
    # str's own slicing: a str enum prints as something else
    plain = str.__str__(text)
    if len(plain) > 4 * _SHOWN:
        plain = plain[: 2 * _SHOWN] + plain[-2 * _SHOWN :]
    return _shortened("".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in plain))


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN + 2 else f"{text[: _SHOWN - 15]}...{text[-12:]}"


def _text(value: object) -> str:
    try:
        return printable(" ".join(repr(value).split()))
    except Exception:  # a user's own __repr__ may raise anything, and the error at hand matters more
        return f"<{type(value).__name__}>"


def _decimal(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # the limit on digits is the interpreter's setting and may be lower than ours
        return f"an integer of {value.bit_length()} bits"


def distance(one: str, other: str) -> int:
    """Return how many letters must be inserted, dropped, replaced or swapped with their neighbour; 99 from 4 on."""
    if abs(len(one) - len(other)) > 3:
        return 99
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, target in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != target))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == target:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1] if row[-1] <= 3 else 99
