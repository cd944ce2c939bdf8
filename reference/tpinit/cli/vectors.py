"""`tpinit vectors`: counts, lists and regenerates the conformance vectors."""

from __future__ import annotations

import argparse
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tpinit.cli.usage import UsageError

if TYPE_CHECKING:
    from tpinit.proofs.vectors.generating import Generated

__all__ = ["add_arguments", "run"]

MAX_SHOWN = 40  # differences

DESCRIPTION = """\
The conformance vectors: one input for every class of inputs that the contract distinguishes, and inputs at the
edges of the classes, each with the answer on which Z3, the resolver and the brute-force oracle agree. Without an
option, count them."""

EPILOG = """\
examples:
  tpinit vectors
  tpinit vectors --list --smoke
  tpinit vectors --list | grep size-mismatch
  tpinit vectors --check

--check and --write need z3-solver and numpy (pip install 'tpinit[proofs]'); the other options need no extra.

exit codes: 0 done, and with --check the vectors are up to date; 1 --check found a difference, or the oracles
disagree and nothing was written; 2 a usage error or a missing extra.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the subcommand and its arguments."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print one line per vector: id, outcome or violations, flag")
    what.add_argument(
        "--check", action="store_true", help="regenerate all vectors and list those that differ from the installed ones"
    )
    what.add_argument("--write", action="store_true", help="regenerate all vectors and replace the installed ones")
    parser.add_argument(
        "--smoke", action="store_true", help="only the smoke subset: every row and every violation code"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the selected action; return 0, or 1 if vectors differ or oracles disagree.

    Raises UsageError for options that exclude each other, a missing extra, and a folder that can't be written.
    """
    if arguments.check or arguments.write:
        if arguments.smoke:
            raise UsageError(
                "--smoke is for counting and listing; regenerating needs all vectors. fix: leave out --smoke"
            )
        return _regenerate(arguments.write)
    return _list(arguments.smoke) if arguments.list else _count(arguments.smoke)


def _list(smoke: bool) -> int:
    from tpinit.conformance.vectors import load

    for vector in load(smoke):
        answer = " ".join(vector.expected["violations"]) or vector.expected["outcome"]
        print(f"{vector.id}  {answer}  {vector.why['flag']}")
    return 0


def _count(smoke: bool) -> int:
    from tpinit.conformance.vectors import load, manifest

    vectors, listed = load(smoke), manifest()
    counts = listed["counts"]
    print(f"{len(vectors)} vectors{' in the smoke subset' if smoke else ''}")
    for row in range(1, 13):
        print(f"  row {row:2}  {sum(vector.row == row for vector in vectors):5}")
    if not smoke:
        print(f"{counts['smoke']} of them in the smoke subset, {counts['boundaries']} at the edges of a class")
        for world, names in listed["runnable"].items():
            print(f"{len(names)} can run in a world of {world} real ranks")
        print(f"{counts['classes']} classes in {len(listed['families'])} families, each with its vector:")
        for name, family in listed["families"].items():
            print(f"  {name:12} {len(family['classes']):5}  {family['says']}")
    print(f"spec {listed['spec']['sha256']}")
    return 0


def _regenerate(replace: bool) -> int:
    missing = [name for name in ("z3", "numpy") if find_spec(name) is None]
    if missing:
        option = "--write" if replace else "--check"
        raise UsageError(
            f"'tpinit vectors {option}' needs {' and '.join(missing)}, not installed here. "
            "fix: pip install 'tpinit[proofs]'"
        )
    from tpinit.proofs.vectors.candidates import MissingWitness
    from tpinit.proofs.vectors.classes import UndecidedClasses
    from tpinit.proofs.vectors.generating import OraclesDisagree, generate

    try:
        generated = generate()
    except (MissingWitness, OraclesDisagree, UndecidedClasses) as problem:
        print(f"tpinit: nothing was written: {problem}", file=sys.stderr)
        return 1
    return _write(generated) if replace else _check(generated)


def _folder() -> Path:
    folder = Path(str(files("tpinit.spec.vectors")))
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is not a folder. fix: install tpinit from source; only there can the vectors be written"
        )
    return folder


def _write(generated: Generated) -> int:
    from tpinit.proofs.vectors.generating import write

    folder = _folder()
    try:
        write(generated, folder)
    except OSError as problem:
        raise UsageError(f"{folder}: {problem.strerror}. fix: install tpinit from source") from problem
    print(f"{len(generated.vectors)} vectors written to {folder}")
    return 0


def _check(generated: Generated) -> int:
    from tpinit.proofs.vectors.generating import check, committed

    differing = check(generated, committed())
    for line in differing[:MAX_SHOWN]:
        print(line)
    if len(differing) > MAX_SHOWN:
        print(f"... and {len(differing) - MAX_SHOWN} more")
    if differing:
        print(
            f"{len(differing)} differences from what the spec gives. fix: 'tpinit vectors --write' replaces the vectors"
        )
        return 1
    print(f"all {len(generated.vectors)} vectors are what the spec gives, and all oracles agree")
    return 0
