"""The `tpinit` command: its options, its subcommands, and its exit codes.

Exit codes: 0 for success, 1 if a decision is an error or a proof or a training step fails, 2 if the question
is malformed (a usage error, an unreadable config, a missing extra), 70 for a bug in tpinit, the only case with
a traceback. Errors go to stderr as `tpinit: error: ...`.
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
    """One subcommand: its line in the help, and the libraries that it needs, each with its extra.

    A command with `own_parser` parses its arguments itself.
    """

    summary: str
    needs: tuple[tuple[str, str], ...] = ()
    own_parser: bool = False


# The module of a subcommand is imported only when the subcommand is used.
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
        "change the contract and its code in one place at a time, and name what detects each change",
        needs=(("z3", "proofs"), ("crosshair", "proofs"), ("pytest", "conformance")),
        own_parser=True,
    ),
    "vectors": Command("count, list and regenerate the conformance vectors"),
    "check-table": Command("find the gaps, overlaps and conflicts of any decision table", needs=(("z3", "proofs"),)),
    "conform": Command("test any implementation of the contract against the conformance vectors"),
    "plan": Command(
        "show how a model of any size is sharded over any number of ranks, and what that costs",
        needs=(("torch", "runtime"), ("transformers", "hf")),
    ),
    "verify": Command(
        "prove that a model's sharded training step is that of the whole model",
        needs=(("torch", "runtime"), ("transformers", "hf")),
    ),
    "checkpoint": Command("verify a checkpoint, and write its weights as safetensors", needs=(("torch", "runtime"),)),
    "train": Command(
        "fine-tune a model on lines of text, or train a small sharded Llama beside the unsharded one",
        needs=(("torch", "runtime"), ("transformers", "hf")),
    ),
}

DESCRIPTION = """\
How tensor-parallel training starts: decide, explain, prove and run what tp_model_init() followed by
initialize() must do."""

EPILOG = """\
examples:
  tpinit table
  tpinit resolve ds_config.json --world 4
  tpinit resolve ds_config.json --tp-size 2 --dtype bf16 --mpu '0,2;1,3' --json
  tpinit prove
  tpinit train

exit codes: 0 success, 1 a violation of the contract (or a proof or a step that failed), 2 a usage error,
malformed input or a missing extra. 'tpinit COMMAND --help' describes a command.
"""


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors have the form of this command's errors (argparse has no other hook)."""

    def error(self, message: str) -> NoReturn:
        _fail(f"{message}\n  fix: see '{self.prog} --help'")
        raise SystemExit(2)


def _fail(message: str) -> None:
    print(f"tpinit: error: {message}", file=sys.stderr)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and only --version needs it

    try:
        return version("tpinit")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "(not installed)"


class _Version(argparse.Action):
    """Prints the version and exits. argparse's own action needs the version before it is used."""

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
    """Raise UsageError, naming the extras, if a library that the subcommand needs is not installed."""
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

    It returns 141 if the reader of a pipe closes it early, and 130 for Ctrl-C, as shells expect, both silently.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # never fail for a character that a terminal can't show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except UsageError as error:
        _fail(str(error))
        return 2
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except Exception:  # a bug must not look like a violation: Python itself would exit with 1
        import traceback

        traceback.print_exc()
        _fail("this is a bug in tpinit: please report the lines above")
        return 70
    return status


if __name__ == "__main__":
    sys.exit(main())
