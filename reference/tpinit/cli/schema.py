"""`tpinit schema`: the JSON Schema of the `tensor_parallel` section."""

from __future__ import annotations

import argparse
import json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the subcommand; it takes no arguments."""
    parser.description = (
        "Print the JSON Schema of the tensor_parallel section on stdout, generated from what reads it.\n"
        "An editor that knows it completes and checks the section while you type."
    )


def run(_: argparse.Namespace) -> int:
    """Print the schema and return 0."""
    from tpinit.reference.config import section_schema

    print(json.dumps(section_schema(), indent=2))
    return 0
