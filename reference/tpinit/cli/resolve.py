"""`tpinit resolve`: decides what `initialize` will do for these inputs, without starting anything."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations

from tpinit.cli.groups import RankGroups, RankMpu, parse_groups, world_problems
from tpinit.cli.usage import UsageError
from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.explain import explain, to_json
from tpinit.reference.objects import CallArgs, Resolver
from tpinit.reference.resolver import created, resolve
from tpinit.reference.spellings import MAX_DIGITS, show
from tpinit.spec.vocabulary import Decision

__all__ = ["add_arguments", "run"]

DESCRIPTION = """\
Decide what tp_model_init() followed by initialize() will do: the row of the contract, and the size, the dtype and
the TP group, each with its source; or every violation with its fix. Nothing is started, and no torch, GPU or
model is needed.

An input that is not given is absent: without --tp-size, tp_model_init() was not called; without --mpu, no mpu
is passed to initialize(); without CONFIG, or if it lacks a tensor_parallel section, there is no section."""

EPILOG = """\
GROUPS lists all tensor-parallel groups of the world: ranks split by ',', groups split by ';', as in '0,2;1,3'.
The groups must be disjoint, of one size, and hold every rank; their order and the order of their ranks have no
meaning. The group that --rank belongs to is used. The same list in two options is the same group; different lists
are different groups.

The size of the world is --world, else the number of ranks in the groups, else $WORLD_SIZE. It is required only if
the decision depends on it, that is, if a group would be created.

examples:
  tpinit resolve ds_config.json --world 4
  tpinit resolve ds_config.json --tp-size 2 --dtype bf16 --mpu '0,2;1,3' --world 4
  tpinit resolve --tp-size 2 --dtype fp32 --tp-group '0,1;2,3' --json
  generate_config | tpinit resolve - --world 8

exit codes: 0 decided, 1 the inputs violate the contract, 2 the inputs can't be read.
"""

WORLD_UNKNOWN = Problem(
    "--world",
    "",
    "is missing: a group would be created, and the number of ranks decides whether that is possible",
    "add --world N",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the subcommand and its arguments."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG",
        help="a DeepSpeed config: a JSON or HJSON file, its base64 text, or '-' for stdin (default: no config)",
    )
    call = parser.add_argument_group("tp_model_init()")
    call.add_argument("--tp-size", metavar="N", help="its tp_size; giving one means that it was called")
    call.add_argument("--dtype", metavar="DTYPE", help="its dtype: fp32, fp16, bf16 or another spelling of one of them")
    call.add_argument("--tp-group", metavar="GROUPS", help="its tp_group (default: none)")
    init = parser.add_argument_group("initialize()")
    init.add_argument("--mpu", metavar="GROUPS", help="the tensor-parallel groups of its mpu (default: no mpu)")
    init.add_argument(
        "--mesh", metavar="GROUPS", help="the groups of the tensor-parallel dimension of its mesh (default: no mesh)"
    )
    world = parser.add_argument_group("the run")
    world.add_argument("--world", metavar="N", help="the number of ranks in the world")
    world.add_argument("--rank", metavar="R", default="0", help="the rank that decides (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the decision as a JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print the decision; return 1 if it is an error of the contract, else 0.

    Raises UsageError for malformed input, with every problem of the options, else of the config.
    """
    try:
        world, decision = _decide(arguments)
    except ConfigError as error:
        raise UsageError(str(error)) from error
    print(json.dumps(to_json(decision) | {"world_size": world}, indent=2) if arguments.json else explain(decision))
    return 1 if decision.violations else 0


def _decide(arguments: argparse.Namespace) -> tuple[int | None, Decision]:
    """Convert the options to the objects that users pass, resolve these, and return the world and the decision.

    Raises ConfigError with every problem of the options, else of the config.
    """
    options = _read_options(arguments)
    # If the world is unknown, nothing depends on it (checked below), and 1 serves as its size.
    resolver = Resolver(options.world or 1)
    with _config(arguments.config) as config:
        inputs = resolver.inputs(call=options.call, config=config, mpu=options.mpu, mesh_group=options.mesh_group)
    if options.world is None and created(inputs):
        raise ConfigError([WORLD_UNKNOWN])
    return options.world, resolve(inputs)


@dataclass(frozen=True, slots=True)
class _Options:
    """The options, read. The world is None if it was not given and does not follow from the groups."""

    world: int | None
    call: CallArgs | None
    mpu: RankMpu | None
    mesh_group: tuple[int, ...] | None


def _read_options(arguments: argparse.Namespace) -> _Options:
    """Read every option. Raises ConfigError with all their problems."""
    problems: list[Problem] = _call_problems(arguments)
    tp_size = _integer("--tp-size", arguments.tp_size, problems)
    rank = _integer("--rank", arguments.rank, problems, least=0)
    world = _integer("--world", arguments.world, problems, least=1)
    lists = {
        option: _groups(option, text, problems)
        for option, text in (
            ("--tp-group", arguments.tp_group),
            ("--mpu", arguments.mpu),
            ("--mesh", arguments.mesh),
        )
        if text is not None
    }
    if arguments.world is None:
        world = _deduced_world(lists, problems)
    if world is not None and rank is not None and rank >= world:
        problems.append(
            Problem("--rank", show(rank), f"is outside a world of {show(world)}", "give a rank of the world")
        )
    for option, groups in lists.items():
        if groups is not None and world is not None:
            problems += world_problems(option, getattr(arguments, option[2:].replace("-", "_")), groups, world)
    if problems:
        raise ConfigError(problems)
    assert rank is not None  # its absence is among the problems

    given = {option: groups for option, groups in lists.items() if groups is not None}
    problems += _differing_ranks(given, rank)
    if problems:
        raise ConfigError(problems)
    group = {option: groups.of(rank) for option, groups in given.items()}
    mpu = given.get("--mpu")
    return _Options(
        world=world,
        call=None if tp_size is None else CallArgs(tp_size, arguments.dtype, group.get("--tp-group")),
        mpu=None if mpu is None else RankMpu(rank, group["--mpu"], mpu.across(rank)),
        mesh_group=group.get("--mesh"),
    )


def _call_problems(arguments: argparse.Namespace) -> list[Problem]:
    """Return the problems of an incomplete call: it has a size and a dtype (section 4)."""
    problems = []
    if arguments.tp_size is None:
        why = "is an argument of tp_model_init(), which counts as called only if --tp-size is given"
        fix = "add --tp-size N, or leave this out"
        for option, value in (("--dtype", arguments.dtype), ("--tp-group", arguments.tp_group)):
            if value is not None:
                problems.append(Problem(option, show(value), why, fix))
    elif arguments.dtype is None:
        why = "is missing: --tp-size means that tp_model_init() was called, and a call always has a dtype"
        problems.append(Problem("--dtype", "", why, "add --dtype fp32, fp16 or bf16"))
    return problems


def _integer(option: str, text: str | None, problems: list[Problem], least: int | None = None) -> int | None:
    """Return an option as an integer, or None if it is absent or, after adding a problem, malformed."""
    if text is None:
        return None
    legal = "an integer" if least is None else f"an integer, at least {least}"
    readable = re.fullmatch(r"[+-]?[0-9]+", text) is not None and len(text) <= MAX_DIGITS
    if not readable or (least is not None and int(text) < least):
        problems.append(
            Problem(option, show(text), f"must be {legal}", f"write it as in {option} {max(least or 0, 2)}")
        )
        return None
    return int(text)


def _groups(option: str, text: str, problems: list[Problem]) -> RankGroups | None:
    groups = parse_groups(option, text)
    if isinstance(groups, Problem):
        problems.append(groups)
        return None
    return groups


def _differing_ranks(given: Mapping[str, RankGroups], rank: int) -> list[Problem]:
    """Return a problem for each pair of lists that agree on this rank's group and differ elsewhere.

    Other ranks would then decide otherwise, so the run would fail. The reference can't notice: it treats equal ranks
    as the same group.
    """
    problems = []
    for one, other in combinations(given, 2):
        if given[one] != given[other] and given[one].of(rank) == given[other].of(rank):
            elsewhere = given[one].first_difference(given[other])
            message = f"rank {rank} has the same group here as in {one}, but rank {elsewhere} has another group"
            fix = f"give the same list in both options, or resolve for the other rank: --rank {elsewhere}"
            problems.append(Problem(other, "", message, fix))
    return problems


def _deduced_world(lists: Mapping[str, RankGroups | None], problems: list[Problem]) -> int | None:
    """Return the world that the groups span, else that of $WORLD_SIZE, else None."""
    spans = [1 + groups.largest for groups in lists.values() if groups is not None]
    if spans:
        return max(spans)
    if lists:  # all of them are malformed, and their problems are listed already
        return None
    return _integer("$WORLD_SIZE", os.environ.get("WORLD_SIZE"), problems, least=1)


@contextmanager
def _config(given: str | None) -> Iterator[str | None]:
    """Yield the config for its reader. Stdin is copied to a temporary file, so that it may be HJSON too."""
    if given != "-":
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="tpinit-") as folder:
        path = os.path.join(folder, "stdin")
        with open(path, "wb") as file:
            file.write(sys.stdin.buffer.read())
        yield path
