"""`tpinit mutate`: judge every mutant of the contract, and mutants of the code, and say who killed each."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import tpinit.proofs.theorems  # noqa: F401 - registers the theorems
from tpinit.proofs.claims import THEOREMS
from tpinit.proofs.mutation.battery import Coverage, bytecode_elsewhere
from tpinit.proofs.mutation.code import TARGETS, checkout, cover, mutants_of
from tpinit.proofs.mutation.ending import unwinding
from tpinit.proofs.mutation.record import Fate, Judged
from tpinit.proofs.mutation.running import Code, Spec, judge_all, listed, stale
from tpinit.proofs.mutation.spec import spec_mutants

__all__ = ["mutate"]

SAMPLE = 120

_DESCRIPTION = """\
Change the contract and its code in one small place at a time, and see that a theorem or a test notices.
Without options: every mutant of the contract, and a sample of those of the code."""

_EPILOG = f"""\
A mutant of the contract is killed by a theorem, or proven by Z3 to decide as the contract does. One of the
code is killed by a theorem about the shipped source or by a test, or it is in equivalent.json with a reason.

exit codes: 0 all of that holds, 1 a mutant survived or a listed survivor is none, 2 a usage error.
The sample has {SAMPLE} mutants unless --sample or --all says otherwise; the same seed takes the same ones."""


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number (0 or more)")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tpinit mutate",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--spec", action="store_true", help="mutants of the contract alone")
    parser.add_argument("--code", action="store_true", help="mutants of the code alone")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--all", action="store_true", help="every mutant of the code")
    amount.add_argument("--sample", metavar="N", type=_positive, help="this many mutants of the code")
    parser.add_argument("--seed", metavar="S", type=_number, default=0, help="which sample (default: 0)")
    parser.add_argument(
        "--only", metavar="TEXT", help="only mutants with this text in 'target/name'; no sample is taken"
    )
    parser.add_argument(
        "--without",
        metavar="THEOREM",
        action="append",
        default=[],
        help="leave a theorem out, for mutants of the contract",
    )
    jobs = os.cpu_count() or 1
    parser.add_argument("--jobs", metavar="N", type=_positive, default=jobs, help=f"processes (here: {jobs})")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write what became of each mutant to a file")
    parser.add_argument("--list", action="store_true", help="list the chosen mutants, and judge none")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def mutate(argv: Sequence[str]) -> int:
    """Judge what the arguments ask for. Return 0 when nothing survives that may not, else 1 (SystemExit 2 on usage)."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    for name in arguments.without:
        if name not in THEOREMS:
            parser.error(f"--without {name}: no theorem has that name; see 'tpinit prove --list'")
    try:
        tasks = _tasks(arguments)
    except FileNotFoundError as error:
        parser.error(str(error))
    if not tasks:
        parser.error("no mutant is chosen; see 'tpinit mutate --list'")
    if arguments.list:
        for task in tasks:
            print(_name(task))
        return 0
    return _judge(arguments, tasks)


def _tasks(arguments: argparse.Namespace) -> list[Spec | Code]:
    both = arguments.spec == arguments.code
    spec: list[Spec | Code] = []
    code: list[Spec | Code] = []
    if both or arguments.spec:
        spec += [Spec(place, tuple(arguments.without)) for place in range(len(spec_mutants()))]
    if both or arguments.code:
        checkout()
        code += [Code(place, name) for place, target in enumerate(TARGETS) for name in mutants_of(target)]
    if arguments.only is not None:
        return [task for task in [*spec, *code] if arguments.only in _name(task)]
    if not arguments.all:
        size = min(arguments.sample or SAMPLE, len(code))
        code = [code[place] for place in sorted(random.Random(arguments.seed).sample(range(len(code)), size))]
    return [*spec, *code]


def _name(task: Spec | Code) -> str:
    if isinstance(task, Code):
        return f"{TARGETS[task.target].name}/{task.name}"
    mutant = spec_mutants()[task.place]
    return f"{mutant.target}/{mutant.name}"


def _judge(arguments: argparse.Namespace, tasks: Sequence[Spec | Code]) -> int:
    started = time.perf_counter()
    wanted = sorted({task.target for task in tasks if isinstance(task, Code)})
    if wanted and not arguments.quiet:
        print("recording which test reaches which line", file=sys.stderr, flush=True)
    with unwinding(), bytecode_elsewhere():
        judged = _judged(arguments, tasks, wanted)
    reasons = listed()
    gone = stale(judged, _all_code_names() if wanted else set(reasons), reasons)
    _print_table(judged)
    _print_killers(judged)
    _print_rest(judged, gone)
    survived = sum(one.fate is Fate.SURVIVED for one in judged)
    if arguments.json is not None:
        _write(arguments, judged, gone)
    print(f"\n{len(judged)} mutants, {survived} survived, in {time.perf_counter() - started:.1f} s")
    return 1 if survived or gone else 0


def _judged(arguments: argparse.Namespace, tasks: Sequence[Spec | Code], wanted: Sequence[int]) -> list[Judged]:
    recorded = cover([TARGETS[place] for place in wanted])
    coverage: Mapping[int, Coverage] = {place: recorded[TARGETS[place].tests] for place in wanted}
    count = 0

    def progress(one: Judged) -> None:
        nonlocal count
        count += 1
        if not arguments.quiet and (count % 50 == 0 or count == len(tasks) or one.fate is Fate.SURVIVED):
            told = f": {one.target}/{one.name} SURVIVED" if one.fate is Fate.SURVIVED else ""
            print(f"[{count}/{len(tasks)}]{told}", file=sys.stderr, flush=True)

    return judge_all(tasks, coverage, min(arguments.jobs, len(tasks)), progress)


def _all_code_names() -> set[str]:
    return {name for target in TARGETS for name in mutants_of(target)}


# --- words ---------------------------------------------------------------------------------------------

_FATES = (Fate.KILLED, Fate.EQUIVALENT, Fate.LISTED, Fate.SURVIVED)


def _summary(judged: Sequence[Judged]) -> dict[str, Counter[Fate]]:
    counts: dict[str, Counter[Fate]] = {}
    for one in judged:
        counts.setdefault(one.target, Counter())[one.fate] += 1
    return counts


def _rate(counts: Counter[Fate]) -> str:
    """The part of those killed that no proof and no reason excuses. 100 % is said only where none survived."""
    live = counts[Fate.KILLED] + counts[Fate.SURVIVED]
    if not live:
        return "-"
    return "100 %" if not counts[Fate.SURVIVED] else f"{min(99.9, 100 * counts[Fate.KILLED] / live):.1f} %"


def _print_table(judged: Sequence[Judged]) -> None:
    print(f"{'target':14}{'mutants':>9}{'killed':>9}{'equivalent':>12}{'listed':>9}{'survived':>10}{'kill rate':>11}")
    counts = _summary(judged)
    total = sum(counts.values(), Counter[Fate]())
    for target, of_target in [*counts.items(), ("all", total)]:
        killed, equivalent, with_reason, survived = (of_target[fate] for fate in _FATES)
        numbers = f"{of_target.total():>9}{killed:>9}{equivalent:>12}{with_reason:>9}{survived:>10}"
        print(f"{target:14}{numbers}{_rate(of_target):>11}")


def _print_killers(judged: Sequence[Judged]) -> None:
    print("\nkilled by")
    # A test is told by its file: --json has the test itself.
    killers = Counter(one.killer.partition("::")[0] for one in judged if one.fate is Fate.KILLED)
    for killer, count in sorted(killers.items(), key=lambda item: (-item[1], item[0])):
        print(f"{count:>7}  {killer}")


def _print_rest(judged: Sequence[Judged], gone: Sequence[str]) -> None:
    for fate, title in (
        (Fate.EQUIVALENT, "equivalent, as Z3 proves"),
        (Fate.LISTED, "survivors with a reason"),
        (Fate.SURVIVED, "SURVIVED"),
    ):
        ones = [one for one in judged if one.fate is fate]
        if ones:
            print(f"\n{title}")
        for one in ones:
            print(f"  {one.target}/{one.name}")
            if one.how and fate is not Fate.EQUIVALENT:
                print(f"      {one.how}")
    if gone:
        print("\nSTALE in equivalent.json: killed, or no such mutant; take them out")
    for name in gone:
        print(f"  {name}")


def _write(arguments: argparse.Namespace, judged: Sequence[Judged], gone: Sequence[str]) -> None:
    summary = {target: {fate.value: counts[fate] for fate in _FATES} for target, counts in _summary(judged).items()}
    mutants = [
        {"target": one.target, "name": one.name, "fate": one.fate.value, "killer": one.killer, "how": one.how}
        for one in judged
    ]
    page = {"seed": arguments.seed, "summary": summary, "stale": list(gone), "mutants": mutants}
    arguments.json.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
