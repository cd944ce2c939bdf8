"""The `tpinit` command: what it is called, its subcommands, and how it ends.

Exit codes: 0 for success, 1 where a decision, a proof or a training step says no, 2 where the question
itself is malformed (a usage error, an unreadable config, a missing extra), 70 for a bug in tpinit, which
alone shows a traceback. Errors go to stderr as `tpinit: error: ...`.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NoReturn

from tpinit.cli.usage import UsageError

__all__ = ["main"]


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand: its line in the help, and the libraries it needs, each with the extra that brings it.

    A command with its `own_parser` gets its arguments as they are.
    """

    summary: str
    needs: tuple[tuple[str, str], ...] = ()
    own_parser: bool = False


# The module of a subcommand is imported only when that subcommand was asked for.
COMMANDS = {
    "resolve": Command("decide what initialize() does for a config, a call, an mpu and a mesh"),
    "table": Command("show the twelve rows of the contract"),
    "schema": Command("print the JSON Schema of the tensor_parallel section, for editors"),
    "prove": Command(
        "prove the contract and the shipped resolver",
        needs=(("z3", "proofs"), ("crosshair", "proofs")),
        own_parser=True,
    ),
    "mutate": Command(
        "change the contract and its code in one place at a time, and see who notices",
        needs=(("z3", "proofs"), ("crosshair", "proofs"), ("pytest", "conformance")),
        own_parser=True,
    ),
    "vectors": Command("count, list and regenerate the conformance vectors"),
    "check-table": Command("find what is wrong with a decision table, anybody's", needs=(("z3", "proofs"),)),
    "conform": Command("hold an implementation of the contract, anybody's, against its conformance vectors"),
    "plan": Command(
        "say how a model of any size is cut over any number of ranks, and what that costs",
        needs=(("torch", "runtime"), ("transformers", "hf")),
    ),
    "train": Command(
        "train a small sharded Llama beside the unsharded one",
        needs=(("torch", "runtime"), ("transformers", "hf")),
    ),
}

DESCRIPTION = """\
How tensor-parallel training starts: what tp_model_init() followed by initialize() must do, decided,
explained, proven and run."""

EPILOG = """\
examples:
  tpinit table
  tpinit resolve ds_config.json --world 4
  tpinit resolve ds_config.json --tp-size 2 --dtype bf16 --mpu '0,2;1,3' --json
  tpinit prove
  tpinit train

exit codes: 0 success, 1 a violation of the contract (or a proof or a step that failed), 2 a usage error,
malformed input or a missing extra. 'tpinit COMMAND --help' tells more.
"""


class _Parser(argparse.ArgumentParser):
    """argparse, but its errors read like all others of this command (argparse offers no other hook)."""

    def error(self, message: str) -> NoReturn:
        _fail(f"{message}\n  fix: see '{self.prog} --help'")
        raise SystemExit(2)


def _fail(message: str) -> None:
    print(f"tpinit: error: {message}", file=sys.stderr)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # 20 ms that only --version needs

    try:
        return version("tpinit")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "(not installed)"


class _Version(argparse.Action):
    """Prints the version and ends; argparse's own action wants the version before it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"tpinit {_version()}")
        parser.exit()


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tpinit",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name, help=command.summary, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        if name in argv and not command.own_parser:
            module = importlib.import_module(f"tpinit.cli.{name.replace('-', '_')}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def _check_needs(name: str) -> None:
    """Raises UsageError where a library that the subcommand needs is not installed, naming the extras."""
    missing = [(module, extra) for module, extra in COMMANDS[name].needs if find_spec(module) is None]
    if missing:
        modules = " and ".join(module for module, _ in missing)
        extras = ",".join(dict.fromkeys(extra for _, extra in missing))
        raise UsageError(f"'tpinit {name}' needs {modules}, not installed here. fix: pip install 'tpinit[{extras}]'")


def _run(argv: Sequence[str]) -> int:
    if not argv:
        _parser(argv).print_help(sys.stderr)
        return 2
    name = argv[0]
    if name in COMMANDS and COMMANDS[name].own_parser:
        _check_needs(name)
        return int(importlib.import_module(f"tpinit.cli.{name}").run(argv[1:]))
    arguments = _parser(argv).parse_args(argv)
    _check_needs(arguments.command)
    return int(arguments.run(arguments))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: those of the process) and return its exit code.

    A reader that closes the pipe early ends it with 141 and Ctrl-C with 130, as shells expect, both silently.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that can't show a character is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except UsageError as error:
        _fail(str(error))
        return 2
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends; give it a place where that works.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except Exception:  # a bug must not look like a violation, and 1 is what Python itself would exit with
        import traceback

        traceback.print_exc()
        _fail("this is a bug in tpinit: please report the lines above")
        return 70
    return status


if __name__ == "__main__":
    sys.exit(main())
