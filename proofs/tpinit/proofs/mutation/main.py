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
from tpinit.proofs.mutation.code import TARGETS, checkout, cover, mutants_of
from tpinit.proofs.mutation.result import MutantResult, MutantStatus
from tpinit.proofs.mutation.sigterm import raising_on_sigterm
from tpinit.proofs.mutation.spec import spec_mutants
from tpinit.proofs.mutation.test_runner import Coverage, temporary_bytecode
from tpinit.proofs.mutation.workers import CodeMutantId, SpecMutantId, accepted_survivors, judge_all, stale_entries

__all__ = ["mutate"]

SAMPLE = 120

_DESCRIPTION = """\
Mutation testing: change the contract and its code in one small place at a time, and check that a theorem or a
test fails. Without options: every mutant of the contract, and a sample of the mutants of the code."""

_EPILOG = f"""\
Each mutant of the contract must be killed by a theorem or proven by Z3 to be equivalent to the contract. Each
mutant of the code must be killed by a theorem about the shipped source or by a test, or be listed in
equivalent.json with a reason.

exit codes: 0 all of that holds; 1 a mutant survived, or a listed survivor was killed or does not exist; 2 a
usage error. The sample has {SAMPLE} mutants unless --sample or --all is given; a seed fixes the sample."""


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
    parser.add_argument("--spec", action="store_true", help="only mutants of the contract")
    parser.add_argument("--code", action="store_true", help="only mutants of the code")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--all", action="store_true", help="every mutant of the code")
    amount.add_argument("--sample", metavar="N", type=_positive, help="this many mutants of the code")
    parser.add_argument("--seed", metavar="S", type=_number, default=0, help="seed of the sample (default: 0)")
    parser.add_argument(
        "--only", metavar="TEXT", help="only mutants with this text in 'target/name'; no sample is taken"
    )
    parser.add_argument(
        "--without",
        metavar="THEOREM",
        action="append",
        default=[],
        help="judge mutants of the contract without this theorem; repeatable",
    )
    jobs = os.cpu_count() or 1
    parser.add_argument("--jobs", metavar="N", type=_positive, default=jobs, help=f"processes (here: {jobs})")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result of each mutant to a file")
    parser.add_argument("--list", action="store_true", help="list the chosen mutants, and judge none")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def mutate(argv: Sequence[str]) -> int:
    """Run `tpinit mutate`. Return 0 when no unlisted mutant survives, else 1 (SystemExit 2 on a usage error)."""
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


def _tasks(arguments: argparse.Namespace) -> list[SpecMutantId | CodeMutantId]:
    both = arguments.spec == arguments.code
    spec: list[SpecMutantId | CodeMutantId] = []
    code: list[SpecMutantId | CodeMutantId] = []
    if both or arguments.spec:
        spec += [SpecMutantId(place, tuple(arguments.without)) for place in range(len(spec_mutants()))]
    if both or arguments.code:
        checkout()
        code += [CodeMutantId(place, name) for place, target in enumerate(TARGETS) for name in mutants_of(target)]
    if arguments.only is not None:
        return [task for task in [*spec, *code] if arguments.only in _name(task)]
    if not arguments.all:
        size = min(arguments.sample or SAMPLE, len(code))
        code = [code[place] for place in sorted(random.Random(arguments.seed).sample(range(len(code)), size))]
    return [*spec, *code]


def _name(task: SpecMutantId | CodeMutantId) -> str:
    if isinstance(task, CodeMutantId):
        return f"{TARGETS[task.target].name}/{task.name}"
    mutant = spec_mutants()[task.place]
    return f"{mutant.target}/{mutant.name}"


def _judge(arguments: argparse.Namespace, tasks: Sequence[SpecMutantId | CodeMutantId]) -> int:
    started = time.perf_counter()
    wanted = sorted({task.target for task in tasks if isinstance(task, CodeMutantId)})
    if wanted and not arguments.quiet:
        print("recording which test reaches which line", file=sys.stderr, flush=True)
    with raising_on_sigterm(), temporary_bytecode():
        judged = _judged(arguments, tasks, wanted)
    reasons = accepted_survivors()
    gone = stale_entries(judged, _all_code_names() if wanted else set(reasons), reasons)
    _print_table(judged)
    _print_killers(judged)
    _print_rest(judged, gone)
    survived = sum(result.status is MutantStatus.SURVIVED for result in judged)
    if arguments.json is not None:
        _write(arguments, judged, gone)
    print(f"\n{len(judged)} mutants, {survived} survived, in {time.perf_counter() - started:.1f} s")
    return 1 if survived or gone else 0


def _judged(
    arguments: argparse.Namespace, tasks: Sequence[SpecMutantId | CodeMutantId], wanted: Sequence[int]
) -> list[MutantResult]:
    recorded = cover([TARGETS[place] for place in wanted])
    coverage: Mapping[int, Coverage] = {place: recorded[TARGETS[place].tests] for place in wanted}
    count = 0

    def progress(result: MutantResult) -> None:
        nonlocal count
        count += 1
        if not arguments.quiet and (count % 50 == 0 or count == len(tasks) or result.status is MutantStatus.SURVIVED):
            note = f": {result.target}/{result.name} SURVIVED" if result.status is MutantStatus.SURVIVED else ""
            print(f"[{count}/{len(tasks)}]{note}", file=sys.stderr, flush=True)

    return judge_all(tasks, coverage, min(arguments.jobs, len(tasks)), progress)


def _all_code_names() -> set[str]:
    return {name for target in TARGETS for name in mutants_of(target)}


# --- output --------------------------------------------------------------------------------------------

_STATUSES = (MutantStatus.KILLED, MutantStatus.EQUIVALENT, MutantStatus.LISTED, MutantStatus.SURVIVED)


def _summary(judged: Sequence[MutantResult]) -> dict[str, Counter[MutantStatus]]:
    counts: dict[str, Counter[MutantStatus]] = {}
    for result in judged:
        counts.setdefault(result.target, Counter())[result.status] += 1
    return counts


def _rate(counts: Counter[MutantStatus]) -> str:
    """Return the share of killed among killed and survived mutants. 100 % is printed only where none survived."""
    live = counts[MutantStatus.KILLED] + counts[MutantStatus.SURVIVED]
    if not live:
        return "-"
    return (
        "100 %" if not counts[MutantStatus.SURVIVED] else f"{min(99.9, 100 * counts[MutantStatus.KILLED] / live):.1f} %"
    )


def _print_table(judged: Sequence[MutantResult]) -> None:
    print(f"{'target':14}{'mutants':>9}{'killed':>9}{'equivalent':>12}{'listed':>9}{'survived':>10}{'kill rate':>11}")
    counts = _summary(judged)
    total = sum(counts.values(), Counter[MutantStatus]())
    for target, of_target in [*counts.items(), ("all", total)]:
        killed, equivalent, with_reason, survived = (of_target[status] for status in _STATUSES)
        numbers = f"{of_target.total():>9}{killed:>9}{equivalent:>12}{with_reason:>9}{survived:>10}"
        print(f"{target:14}{numbers}{_rate(of_target):>11}")


def _print_killers(judged: Sequence[MutantResult]) -> None:
    print("\nkilled by")
    # Only the file of a test is printed; --json has the test itself.
    killers = Counter(result.killer.partition("::")[0] for result in judged if result.status is MutantStatus.KILLED)
    for killer, count in sorted(killers.items(), key=lambda item: (-item[1], item[0])):
        print(f"{count:>7}  {killer}")


def _print_rest(judged: Sequence[MutantResult], gone: Sequence[str]) -> None:
    for status, title in (
        (MutantStatus.EQUIVALENT, "equivalent, as Z3 proves"),
        (MutantStatus.LISTED, "survivors with a reason"),
        (MutantStatus.SURVIVED, "SURVIVED"),
    ):
        chosen = [result for result in judged if result.status is status]
        if chosen:
            print(f"\n{title}")
        for result in chosen:
            print(f"  {result.target}/{result.name}")
            if result.message and status is not MutantStatus.EQUIVALENT:
                print(f"      {result.message}")
    if gone:
        print("\nSTALE in equivalent.json: killed, or no such mutant; remove them")
    for name in gone:
        print(f"  {name}")


def _write(arguments: argparse.Namespace, judged: Sequence[MutantResult], gone: Sequence[str]) -> None:
    summary = {
        target: {status.value: counts[status] for status in _STATUSES} for target, counts in _summary(judged).items()
    }
    mutants = [
        {
            "target": result.target,
            "name": result.name,
            "fate": result.status.value,
            "killer": result.killer,
            "how": result.message,
        }
        for result in judged
    ]
    page = {"seed": arguments.seed, "summary": summary, "stale": list(gone), "mutants": mutants}
    arguments.json.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
