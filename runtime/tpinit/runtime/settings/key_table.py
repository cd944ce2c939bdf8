"""The table of keys in Markdown. `python -m tpinit.runtime.settings.key_table docs/config.md` writes it into a page."""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path

from tpinit.runtime.settings.keys import KEYS, SWITCHES, Effect, Key

__all__ = ["BEGIN", "END", "key_table", "write_table"]

BEGIN = "<!-- table of keys: begin -->"
END = "<!-- table of keys: end -->"
_SWITCHED = frozenset(key.path for key in SWITCHES)


def key_table() -> str:
    """Return the table in Markdown. Neighbours that differ in their names only share a row."""
    rows = ["| key | effect | what it does here |", "|---|---|---|"]
    for (effect, cell, section), keys in groupby(KEYS.values(), _shared):
        names = [f"`{key.path.removeprefix(section)}`" for key in keys]
        start = f"`{section}` + " if section and len(names) > 1 else ""
        shown = ", ".join(names) if start or not section else f"`{section}{names[0].strip('`')}`"
        rows.append(f"| {start}{shown} | {effect} | {cell} |")
    return "\n".join(rows) + "\n"


def _shared(key: Key) -> tuple[str, str, str]:
    """Return what the keys of one row have in common: effect, text, and the section with its dot."""
    section, dot, _ = key.path.rpartition(".")
    return key.effect.value, _cell(key), section + dot


def _cell(key: Key) -> str:
    text = key.note
    if key.effect in (Effect.HONOURED, Effect.SECTION, Effect.NO_EFFECT):
        return text
    if key.path in _SWITCHED:
        legal = "off unless `enabled` is true"
    else:
        legal = "nothing to say for " + ", ".join(f"`{json.dumps(value)}`" for value in key.neutral)
        legal = legal if key.effect is Effect.LOGGED else legal.replace("nothing to say for", "accepted:")
    return f"{text}; {legal}" + (f"; instead: {key.fix}" if key.fix else "")


def write_table(page: str) -> str:
    """Return a page with the table between `BEGIN` and `END`. Raises ValueError if the page lacks them."""
    before, found, rest = page.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{key_table()}\n{END}{after}"


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(write_table(document.read_text(encoding="utf-8")), encoding="utf-8")
