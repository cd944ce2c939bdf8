"""Run real DeepSpeed (or tpinit's runtime, in the same way), compare it with the contract, and write the findings.

python -m studies.deepspeed [--smoke] [--implementation tpinit] [--document FILE] [--known FILE]
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

from tpinit.conformance.adapters.deepspeed import CHOICES, python_of
from tpinit.conformance.adapters.deepspeed.adapter import RankServerAdapter
from tpinit.conformance.protocol import Broken

from studies.deepspeed.campaign import Campaign, run
from studies.deepspeed.document import DocumentInputs, document, known, reproduce, summary
from studies.deepspeed.findings import DEEPSPEED, sort

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print a summary and write the files.

    Returns 0 if every departure belongs to a finding, 1 if not, 4 if the implementation does not start.
    """
    options = _parser().parse_args(argv)
    try:
        campaign = _run(options)
    except Broken as error:
        _say(str(error))
        return 4
    if options.save is not None:
        options.save.write_bytes(pickle.dumps(campaign))
    findings = DEEPSPEED if campaign.who.name == "deepspeed" else ()
    found, left = sort(campaign.cases, findings)
    sys.stdout.write(summary(campaign, found, left) + "\n")
    if options.known is not None:
        options.known.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(known(campaign, found), indent=1, sort_keys=True)
        options.known.write_text(text + "\n", encoding="utf-8")
    if options.document is not None:
        outputs = {} if options.reproductions is None else reproduce(found, options.reproductions, python_of())
        own = None if options.own is None else _saved(options.own) or run(_own(), say=_say)
        older = None
        if options.older is not None:
            older = _saved(options.older) or run(_deepspeed(options.older), parts=("rows",), say=_say)
        options.document.write_text(
            document(campaign, found, left, DocumentInputs(outputs, own, older)), encoding="utf-8"
        )
    return 1 if left else 0


def _run(options: argparse.Namespace) -> Campaign:
    saved = _saved(options.load)
    if saved is not None:
        return saved
    if options.load is not None:
        raise Broken(f"--load {options.load}: no such file")
    adapter = _own() if options.implementation == "tpinit" else _deepspeed("")
    parts = ("rows",) if options.rows else ("vectors", "written", "programs")
    return run(adapter, smoke=options.smoke, parts=parts, say=_say)


def _saved(path: str | None) -> Campaign | None:
    """Load a result written by --save. It is a pickle: never load one from somebody else."""
    if path is None or not Path(path).is_file():
        return None
    campaign: Campaign = pickle.loads(Path(path).read_bytes())
    return campaign


def _own() -> RankServerAdapter:
    return RankServerAdapter("tpinit", lambda: sys.executable, meshes=True)


def _deepspeed(before: str) -> RankServerAdapter:
    """`before` is a folder with another release of DeepSpeed, which precedes the installed one on the path."""
    return RankServerAdapter("deepspeed", python_of, choices=CHOICES, extra_path=before)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m studies.deepspeed", description=__doc__)
    parser.add_argument("--implementation", choices=("deepspeed", "tpinit"), default="deepspeed")
    parser.add_argument("--smoke", action="store_true", help="a part of the run that takes minutes")
    parser.add_argument("--rows", action="store_true", help="only the twelve rows")
    parser.add_argument("--save", type=Path, help="write the raw result to this file")
    parser.add_argument("--load", help="read a saved result instead of running")
    parser.add_argument("--known", type=Path, help="write the known failures to this file")
    parser.add_argument("--document", type=Path, help="write the document to this file")
    parser.add_argument("--reproductions", type=Path, help="run the scripts of this folder for the document")
    parser.add_argument(
        "--own", nargs="?", const="run", help="add tpinit's own runtime to the document: run it, or a saved result"
    )
    parser.add_argument("--older", help="add the twelve rows with the release in this folder, or a saved result")
    return parser


if __name__ == "__main__":
    sys.exit(main())
