"""`tpinit table`: prints the twelve rows for a terminal, a program or a document."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpinit.spec.table import Row

__all__ = ["add_arguments", "run"]

HEADINGS = ("row", "TPI", "TPG", "CFG", "MPU", "outcome", "size and dtype from", "tp_group from")
GAPS = (2, 1, 1, 1, 2, 2, 2, 0)  # the number of spaces after each column
SHORTER = {"config, gaps filled from the call": "config, else the call"}  # keeps the table under 100 columns
LEGEND = """\
TPI  tp_model_init was called for the model   CFG  the config has an enabled tensor_parallel section
TPG  that call was given a tp_group           MPU  an mpu was passed to initialize
A disagreement between any two given values is an error in every row (see 'tpinit resolve')."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the subcommand and its arguments."""
    parser.description = (
        "Show the contract's table: for each combination of the four facts, what initialize() does, and\n"
        "where the size, the dtype and the group come from. A call's tp_group implies the call, so there are\n"
        "twelve rows and not sixteen."
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON array with one object per row")
    form.add_argument("--markdown", action="store_true", help="print a Markdown table")


def run(arguments: argparse.Namespace) -> int:
    """Print the table in the selected form and return 0."""
    from tpinit.spec.table import ROWS

    if arguments.json:
        print(json.dumps([_as_object(row) for row in ROWS], indent=2))
        return 0
    cells: list[Sequence[str]] = [_as_cells(row) for row in ROWS]
    if arguments.markdown:
        rule = ["---"] * len(HEADINGS)
        print("\n".join(f"| {' | '.join(line)} |" for line in (HEADINGS, rule, *cells)))
        return 0
    cells = [[SHORTER.get(cell, cell) for cell in line] for line in cells]
    widths = [max(len(line[column]) for line in (HEADINGS, *cells)) for column in range(len(HEADINGS))]
    for line in (HEADINGS, ["-" * width for width in widths], *cells):
        print("".join(map(str.ljust, line, map(int.__add__, widths, GAPS))).rstrip())
    print(f"\n{LEGEND}")
    return 0


def _word(value: object) -> str:
    return str(value.value if isinstance(value, Enum) else value)


def _as_cells(row: Row) -> Sequence[str]:
    facts = ("Y" if holds else "N" for holds in (row.tpi, row.tpg, row.cfg, row.mpu))
    outcome = _word(row.outcome) if row.code is None else f"{_word(row.outcome)} {_word(row.code)}"
    return (str(row.number), *facts, outcome, _word(row.fields_from), _word(row.group_from))


def _as_object(row: Row) -> dict[str, object]:
    return {
        "row": row.number,
        "tpi": row.tpi,
        "tpg": row.tpg,
        "cfg": row.cfg,
        "mpu": row.mpu,
        "outcome": _word(row.outcome),
        "code": None if row.code is None else _word(row.code),
        "fields_from": _word(row.fields_from),
        "group_from": _word(row.group_from),
    }
