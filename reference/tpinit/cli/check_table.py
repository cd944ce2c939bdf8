"""`tpinit check-table`: finds the problems of any decision table."""

from __future__ import annotations

import argparse
import json
import sys

from tpinit.cli.usage import UsageError
from tpinit.reference.errors import ConfigError

__all__ = ["add_arguments", "run"]

MAX_SHOWN = 20  # problems of a malformed table

DESCRIPTION = """\
Find the gaps, overlaps, conflicts, and the unreachable, subsumed and mergeable rows of a decision table, and
axioms that would close the gaps. Each finding comes with a concrete input that shows it."""

EPILOG = """\
FILE is JSON, HJSON, or a Markdown text with a pipe table ('-': stdin). In JSON:

  {
    "conditions": ["member", {"name": "cart", "values": ["empty", "small", "big"]}],
    "axioms": ["member or cart != empty"],
    "rows": [
      {"id": 1, "cells": {"member": true}, "outcome": "free shipping"},
      {"id": 2, "cells": ["N", ["empty", "small"]], "outcome": "pays"},
      {"id": 3, "cells": "N big", "outcome": "free shipping"}
    ]
  }

A cell is a value, a list of values, or '-' for any value. In Markdown there is one column per condition (Y, N or
'-'; or values, listed in the heading as 'cart {empty, small, big}'), then the outcomes. Lines 'Axiom: TEXT' and
'Hit policy: first' may stand outside the table.

An axiom is true of every input. It is written with iff, implies, or, and, not (loosest first), parentheses,
'cart = big', 'cart != big', 'cart in {small, big}'. Hit policies: unique (the default: rows must not overlap), any
(rows may overlap if their outcomes are equal), first (the first row that matches decides).

examples:
  tpinit check-table examples/tables/tp_model_init.json
  tpinit table --markdown | tpinit check-table -
  tpinit table --markdown | tpinit check-table - --axiom 'TPG implies TPI' --json

exit codes: 0 no findings, 1 gaps, overlaps, conflicts, unreachable or masked rows (with --strict also notes:
subsumed or mergeable rows), 2 the table can't be read, or its axioms contradict each other.
"""


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of items (1 or more)")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the subcommand and its arguments."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("file", metavar="FILE", help="the table, or '-' for stdin")
    parser.add_argument(
        "--axiom", metavar="TEXT", action="append", default=[], help="an axiom in addition to those of FILE; repeatable"
    )
    parser.add_argument(
        "--table", metavar="N", type=_limit, help="which table to read, if a Markdown text has several (1 is the first)"
    )
    parser.add_argument(
        "--limit", metavar="N", type=_limit, default=20, help="the most items of each kind to show (default: 20)"
    )
    parser.add_argument("--strict", action="store_true", help="end with exit code 1 for notes too")
    parser.add_argument("--json", action="store_true", help="print the analysis as a JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print the analysis and return 1 if it has findings (with --strict also for notes), else 0.

    Raises UsageError if the table is malformed, with every problem, or too hard for the solver.
    """
    from tpinit.decision_tables.analysis import Severity, analyse
    from tpinit.decision_tables.format import read_table
    from tpinit.decision_tables.report import as_object, as_text
    from tpinit.decision_tables.space import UndecidedTable

    try:
        table = read_table(arguments.file, axioms=arguments.axiom, number=arguments.table)
        analysis = analyse(table, arguments.limit)
    except ConfigError as error:
        raise UsageError(_limited(error)) from error
    except UndecidedTable as error:
        raise UsageError(f"{error}. fix: split the table, or make its axioms simpler") from error
    if arguments.json:
        json.dump(as_object(analysis, arguments.limit), sys.stdout, indent=2)
        print()
    else:
        print(as_text(analysis, arguments.limit))
    bad = analysis.number(Severity.FINDING) + (analysis.number(Severity.NOTE) if arguments.strict else 0)
    return 1 if bad else 0


def _limited(error: ConfigError) -> str:
    """Return the error's text with at most `MAX_SHOWN` problems."""
    if len(error.problems) <= MAX_SHOWN:
        return str(error)
    shown = str(ConfigError(error.problems[:MAX_SHOWN])).partition("\n")[2]
    rest = len(error.problems) - MAX_SHOWN
    return f"malformed input, {len(error.problems)} problems:\n{shown}\n  ... and {rest} more"
