"""Compare two ledgers path by path. Times are not compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

__all__ = ["UnreadableLedger", "differences", "read", "without_times"]

_SHOWN = 160


class UnreadableLedger(ValueError):
    """The file is not a ledger."""


def read(path: Path) -> Mapping[str, object]:
    """Read a ledger. Raises UnreadableLedger, with the reason, for a file that is not a JSON object with theorems."""
    try:
        ledger = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UnreadableLedger(f"{path}: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        raise UnreadableLedger(f"{path} is not JSON: {problem}") from None
    if not isinstance(ledger, dict) or not isinstance(ledger.get("theorems"), dict):
        raise UnreadableLedger(f'{path} is not a ledger: it has no object "theorems"')
    return ledger


def without_times(ledger: Mapping[str, object]) -> dict[str, object]:
    """Return the ledger without the times, which differ from run to run."""
    return {key: value for key, value in ledger.items() if key != "times"}


def differences(committed: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Return the differences, one line per path: the committed value and the current value."""
    return list(_differ("", without_times(committed), without_times(now)))


def _differ(path: str, committed: object, now: object) -> Iterator[str]:
    if isinstance(committed, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*committed, *now)):
            at = f"{path}.{key}" if path else str(key)
            if key not in now:
                yield f"{at}: is missing now; committed is {_shown(committed[key])}"
            elif key not in committed:
                yield f"{at}: is new: {_shown(now[key])}"
            else:
                yield from _differ(at, committed[key], now[key])
    elif _are_lists(committed, now):
        assert isinstance(committed, Sequence)
        assert isinstance(now, Sequence)
        if len(committed) != len(now):
            yield f"{path}: has {len(now)} entries now, {len(committed)} committed"
        for index, (before, after) in enumerate(zip(committed, now, strict=False)):
            yield from _differ(f"{path}[{index}]", before, after)
    elif type(committed) is not type(now) or committed != now:
        yield f"{path}: is now {_shown(now)}; committed is {_shown(committed)}{_advice(path)}"


def _are_lists(*values: object) -> bool:
    return all(isinstance(value, list) for value in values)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _advice(path: str) -> str:
    if not path.startswith("versions."):
        return ""
    return " (a different version, not a different proof: the ledger is kept with the versions of constraints.txt)"
