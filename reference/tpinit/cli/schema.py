"""`tpinit schema`: prints the JSON Schema of the `tensor_parallel` section, or of a whole config."""

from __future__ import annotations

import argparse
import json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the subcommand and its arguments."""
    parser.description = (
        "Print the JSON Schema of the tensor_parallel section on stdout. It is generated from the table that the\n"
        "reader of configs uses. With it, an editor completes and checks the section while you type."
    )
    parser.add_argument("--config", action="store_true", help="print the schema of a whole config, with the section")


def run(arguments: argparse.Namespace) -> int:
    """Print the schema and return 0."""
    from tpinit.reference.schema import config_schema, section_schema

    print(json.dumps(config_schema() if arguments.config else section_schema(), indent=2))
    return 0
