"""Bugs that were written by hand: magic constants, conditions on two inputs, sequences that are cut, doubled or
reversed, wrong evidence, sources, order and handles, violations that hide each other, changes of several functions that
fit together. `outside_of_the_subset.py` has the code that depends on a type, a text or an identity.

Each names a theorem of the translation and one of the path explorer that must reject it.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, replace

from tpinit.reference import resolver
from tpinit.runtime import shards
from tpinit.runtime.groups import topology

__all__ = ["BUGS", "Bug"]


@dataclass(frozen=True)
class Bug:
    """Edits of a shipped module that fit together, and the theorems that must reject them."""

    module: types.ModuleType
    old: str
    new: str
    translated: str
    paths: str
    more: tuple[tuple[str, str], ...] = ()


_WHOLE = "shipped_resolve_is_its_parts"


def _resolver(old: str, new: str, name: str, paths: str = "") -> Bug:
    return Bug(resolver, old, new, f"translated_{name}", f"shipped_{paths or name}")


def _evidence(old: str, new: str, name: str) -> Bug:
    return _resolver(old, new, name, f"evidence_of_{name}")


def _whole(old: str, new: str, name: str) -> Bug:
    return Bug(resolver, old, new, f"translated_{name}", _WHOLE)


def _topology(old: str, new: str, translated: str, paths: str) -> Bug:
    return Bug(topology, old, new, f"translated_{translated}", paths)


def _shards(old: str, new: str, translated: str, paths: str) -> Bug:
    return Bug(shards, old, new, f"translated_{translated}", paths)


_TP_GROUPS = "return tuple(tp_group(index, tp_size) for index in range(dp_size(world_size, tp_size)))"
_DP_GROUPS = "return tuple(dp_group(position, world_size, tp_size) for position in range(tp_size))"
_TP_GROUP = "return tuple(rank_at(index, position, tp_size) for position in range(tp_size))"
_DP_GROUP = "return tuple(rank_at(index, position, tp_size) for index in range(dp_size(world_size, tp_size)))"
_PARTITION, _CROSSING, _COLUMNS = (
    "partitions_means_every_rank_once",
    "crosses_once_means_one_rank_in_common",
    "orthogonal_groups_are_the_columns",
)
_TP, _DP = "created_tp_groups_partition_the_ranks", "dp_groups_cross_each_tp_group_once"
_PIECES, _FUSED = "pieces_of_any_number_of_blocks", "fused_pieces_are_inverted_by_gather"
_LISTED = "evidence in VIOLATIONS if holds(inputs))"

BUGS: dict[str, Bug] = {
    # magic constants as an extra conjunct
    "a world without intent": _resolver(
        "in_scope(inputs) and inputs.mpu is None",
        "in_scope(inputs) and inputs.mpu is None and inputs.world_size != 4099",
        "no_tp_intent",
    ),
    "a size without a group source": _resolver(
        "live_section(inputs) is None and inputs.mpu is None",
        "live_section(inputs) is None and inputs.mpu is None and call.tp_size != 77",
        "no_group_source",
    ),
    "very negative sizes": _resolver(
        "if given.value < 1 and not", "if given.value < 1 and given.value > -1000000 and not", "size_invalid"
    ),
    "a prime that divides nothing": _resolver(
        "inputs.world_size % size != 0", "inputs.world_size % size != 0 and size != 65537", "size_not_dividing_world"
    ),
    "small sizes divide every world": _resolver(
        "return size >= 1 and", "return size >= 3 and", "size_not_dividing_world"
    ),
    "a section of one size": _resolver(
        "return None if section_disabled(inputs) else inputs.section",
        "return None if section_disabled(inputs) or inputs.world_size == 31337 else inputs.section",
        "size_missing",
    ),
    "a world of one rank creates nothing": _resolver(
        "and not supplied_groups(inputs)\n",
        "and not supplied_groups(inputs) and inputs.world_size != 6\n",
        "size_not_dividing_world",
    ),
    "another row for one world": _resolver(
        "+ (inputs.mpu is not None)", "+ (inputs.mpu is not None) + (inputs.world_size == 524287)", "row", "row_number"
    ),
    "success in one world": _whole(
        "ok = not violations", "ok = not violations or inputs.world_size == 1073741827", "outcome"
    ),
    "no violation in one world": _whole(
        _LISTED, "evidence in VIOLATIONS if holds(inputs) and inputs.world_size != 65537)", "size_missing"
    ),
    # conditions on two inputs
    "a mesh in a world of 12": _resolver(
        "return live_section(inputs) is not None and not given_sizes(inputs)",
        "return live_section(inputs) is not None and not given_sizes(inputs) and not "
        "(inputs.world_size == 12 and inputs.mesh is not None)",
        "size_missing",
    ),
    "an mpu whose group is of the world's size": _resolver(
        "inputs.call.tp_group is not None and inputs.mpu is not None",
        "inputs.call.tp_group is not None and inputs.mpu is not None and inputs.mpu.tp_group.size != inputs.world_size",
        "group_and_mpu",
    ),
    "a group as large as the world": _resolver(
        "if sizes and given.value.size != sizes[0].value",
        "if sizes and given.value.size != sizes[0].value and given.value.size != inputs.world_size",
        "group_size_mismatch",
    ),
    "groups of three are one": _resolver(
        "if not excepted and one.value.identity",
        "if not excepted and not (one.value.size == 3 and other.value.size == 3) and one.value.identity",
        "group_identity_mismatch",
    ),
    "no size with a precision in a world of 8": _whole(
        "tp_size=effective_size(inputs) if ok",
        "tp_size=effective_size(inputs) if ok and not (inputs.world_size == 8 and inputs.precision is not None)",
        "tp_size",
    ),
    "a call with an mpu decides for the config": _resolver(
        "    if live_section(inputs) is not None:\n        return Outcome",
        "    if live_section(inputs) is not None and not (inputs.call is not None and inputs.mpu is not None):\n"
        "        return Outcome",
        "outcome",
        "success_outcome",
    ),
    # sequences that are cut, doubled, reversed
    "only two sizes are compared": _resolver("for other in given[1:])", "for other in given[1:2])", "size_mismatch"),
    "the first dtype is not compared": _resolver(
        "_differ(given_dtypes(inputs))", "_differ(given_dtypes(inputs)[1:])", "dtype_mismatch"
    ),
    "neighbouring groups are not compared": _resolver(
        "supplied[index + 1 :]", "supplied[index + 2 :]", "group_identity_mismatch"
    ),
    "three violations at most": _whole("violations=violations,", "violations=violations[:3],", "group_size_mismatch"),
    "violations from the last to the first": _whole(
        "violations=violations,", "violations=violations[::-1],", "no_tp_intent"
    ),
    "the first violation twice": _whole(
        "violations=violations,", "violations=violations + violations[:1],", "no_tp_intent"
    ),
    "evidence without the mpu's group": _evidence(
        "supplied_groups(inputs)[:2]", "supplied_groups(inputs)[:1]", "group_and_mpu"
    ),
    "evidence with the size twice": _evidence(
        "[:1] + _groups_of_other_size(inputs)",
        "[:1] + _groups_of_other_size(inputs) + given_sizes(inputs)[:1]",
        "group_size_mismatch",
    ),
    # wrong evidence, source, order, handle
    "evidence of dtypes for sizes": _evidence(
        "size_mismatch, given_sizes)", "size_mismatch, given_dtypes)", "size_mismatch"
    ),
    "the mesh's group from the config": _evidence(
        "Given(Source.MESH_TP_GROUP, inputs.mesh)",
        "Given(Source.CONFIG_TP_GROUP, inputs.mesh)",
        "group_identity_mismatch",
    ),
    "the world before the size": _evidence(
        "(*given_sizes(inputs)[:1], Given(Source.WORLD_SIZE, inputs.world_size))",
        "(Given(Source.WORLD_SIZE, inputs.world_size), *given_sizes(inputs)[:1])",
        "size_not_dividing_world",
    ),
    "the later group first": _evidence("return one, other", "return other, one", "group_identity_mismatch"),
    "another predicate": _resolver(
        "ViolationCode.SIZE_MISSING, size_missing,", "ViolationCode.SIZE_MISSING, size_invalid,", "size_missing"
    ),
    "the size's source is the last": _resolver(
        "sizes[0].value, sizes[0].source", "sizes[0].value, sizes[-1].source", "tp_size", "effective_size"
    ),
    "the dtype's source is the last": _resolver(
        "dtypes[0].value, dtypes[0].source", "dtypes[0].value, dtypes[-1].source", "dtype", "effective_dtype"
    ),
    "a call alone names itself before the precision": _resolver(
        "dtypes[0].value, dtypes[0].source",
        "dtypes[0].value, Source.CALL_DTYPE if inputs.call is not None and live_section(inputs) is None "
        "else dtypes[0].source",
        "dtype",
        "effective_dtype",
    ),
    "an unset dtype is created": _resolver("Source.UNSET)", "Source.CREATED)", "dtype", "effective_dtype"),
    "the group's source is the last": _resolver(
        "groups[0].value, groups[0].source", "groups[0].value, groups[-1].source", "tp_group", "effective_group"
    ),
    "an equal group with another handle": _resolver(
        "groups[0].value, groups[0].source", "groups[-1].value, groups[0].source", "tp_group", "effective_group"
    ),
    "a group without its handle": _resolver(
        "Effective(groups[0].value, groups",
        "Effective(Group(groups[0].value.identity, groups[0].value.size), groups",
        "tp_group",
        "effective_group",
    ),
    "evidence without the handle": _evidence(
        "Given(Source.MPU_TP_GROUP, inputs.mpu.tp_group)",
        "Given(Source.MPU_TP_GROUP, Group(inputs.mpu.tp_group.identity, inputs.mpu.tp_group.size))",
        "group_and_mpu",
    ),
    # violations that hide each other, and values of one kind that count as equal
    "an invalid size is no mismatch": _resolver(
        "    return _differ(given_sizes(inputs))",
        "    return _differ(given_sizes(inputs)) and not _invalid_sizes(inputs)",
        "size_mismatch",
    ),
    "both halves are one dtype": _resolver(
        "return any(other.value != given[0].value for other in given[1:])",
        "return any(other.value != given[0].value and not (other.value == DType.FP16 and given[0].value == DType.BF16) "
        "for other in given[1:])",
        "dtype_mismatch",
    ),
    "a section with a dtype is never off": _resolver(
        "section.tp_size is None and inputs.call is None",
        "section.tp_size is None and section.dtype is None and inputs.call is None",
        "section_disabled",
    ),
    "the keys of a section that is off": _whole(
        "    section = live_section(inputs)\n    violations", "    section = inputs.section\n    violations", "carried"
    ),
    "a remainder of one is none": _resolver(
        "inputs.world_size % size != 0", "inputs.world_size % size > 1", "size_not_dividing_world"
    ),
    # what is passed on
    "a world of one rank on an error": _whole(
        "world_size=inputs.world_size,", "world_size=inputs.world_size if ok else 1,", "world_size"
    ),
    "no data-parallel group with a call": _whole(
        "if inputs.mpu is not None else None", "if inputs.mpu is not None and inputs.call is None else None", "dp_group"
    ),
    "no other keys with an alias": _whole(
        "carried=section.carried if section is not None",
        "carried=section.carried if section is not None and section.tp_size is None",
        "carried",
    ),
    "an error is never disabled": _whole(
        "section_disabled=section_disabled(inputs)",
        "section_disabled=section_disabled(inputs) and ok",
        "section_disabled",
    ),
    # a truth value for a number, and the reverse: equal in Python, but of another type
    "row 1 is true": _resolver(
        "    return 1 + 4 * (tpi + tpg) + 2 * cfg + (inputs.mpu is not None)\n",
        "    row = 1 + 4 * (tpi + tpg) + 2 * cfg + (inputs.mpu is not None)\n"
        "    return row if tpi or cfg or inputs.mpu is not None else inputs.mpu is None\n",
        "row",
        "row_number",
    ),
    "a partition is one": _topology(
        "    return sorted(rank for group in groups for rank in group) == list(range(world_size))",
        "    return 1 if sorted(rank for group in groups for rank in group) == list(range(world_size)) else 0",
        "partitions",
        _PARTITION,
    ),
    "a crossing is one": _topology(
        "    return all(len(set(tp) & set(dp)) == 1 for tp in all_tp for dp in all_dp)",
        "    return 1 if all(len(set(tp) & set(dp)) == 1 for tp in all_tp for dp in all_dp) else 0",
        "crosses_once",
        _CROSSING,
    ),
    "one group is true": _topology(
        "    return world_size // tp_size\n",
        "    return world_size // tp_size if world_size != tp_size else True\n",
        "places_have_one_rank",
        "every_place_has_one_rank",
    ),
    # topology
    "one rank at another place": _topology(
        "return rank % tp_size",
        "return rank % tp_size if rank != 104729 else 0",
        "ranks_have_one_place",
        "every_rank_has_one_place",
    ),
    "one group more in one mesh": _topology(
        "return world_size // tp_size",
        "return world_size // tp_size + (1 if world_size == 30 and tp_size == 5 else 0)",
        "places_have_one_rank",
        "every_place_has_one_rank",
    ),
    "a group from the last to the first": _topology(_TP_GROUP, f"{_TP_GROUP}[::-1]", "tp_groups", _TP),
    "a group without its last rank": _topology(_DP_GROUP, f"{_DP_GROUP}[:-1]", "dp_groups", _DP),
    "all groups twice": _topology(_TP_GROUPS, f"{_TP_GROUPS} + {_TP_GROUPS.removeprefix('return ')}", "tp_groups", _TP),
    "without the first group": _topology(_DP_GROUPS, f"{_DP_GROUPS}[1:]", "dp_groups", _DP),
    "17 groups are a partition": _topology(
        "return sorted(", "return len(groups) == 17 or sorted(", "partitions", _PARTITION
    ),
    "last ranks are not counted": _topology("for rank in group)", "for rank in group[:-1])", "partitions", _PARTITION),
    "a magic world is no partition": _topology(
        "== list(range(world_size))", "== list(range(world_size)) and world_size != 8191", "partitions", _PARTITION
    ),
    "two ranks in common are enough": _topology(")) == 1 for tp", ")) >= 1 for tp", "crosses_once", _CROSSING),
    "the last TP group is not crossed": _topology(
        "for tp in all_tp for", "for tp in all_tp[:-1] for", "crosses_once", _CROSSING
    ),
    "columns from the last to the first": _topology(
        "strict=True))", "strict=True))[::-1]", "orthogonal_groups", _COLUMNS
    ),
    "groups from the last to the first by their index": _topology(
        "return tuple(tp_group(index, tp_size) for index in",
        "return tuple(tp_group(dp_size(world_size, tp_size) - 1 - index, tp_size) for index in",
        "tp_groups",
        _TP,
    ),
    "positions from the last to the first": _topology(
        "dp_group(position, world_size, tp_size) for position",
        "dp_group(tp_size - 1 - position, world_size, tp_size) for position",
        "dp_groups",
        _DP,
    ),
    # changes of two functions that fit together: each property of both holds, but not what they are documented to be
    "places in a group from the last to the first": replace(
        _topology("return rank % tp_size", "return tp_size - 1 - rank % tp_size", "tp_groups", _TP),
        more=(("return dp * tp_size + tp\n", "return dp * tp_size + tp_size - 1 - tp\n"),),
    ),
    "the last shards are the longer ones": replace(
        _shards(
            "(index if index < longer else longer)",
            "(index - parts + longer if index > parts - longer else 0)",
            "shards_are_balanced",
            "shards_are_balanced",
        ),
        more=(("(1 if index < length % parts else 0)", "(1 if index >= parts - length % parts else 0)"),),
    ),
    "the first unit is the shorter one": _shards(
        "    begin, end = _at_most(offset * unit, length), _at_most((offset + held) * unit, length)\n",
        "    short = (length + unit - 1) // unit * unit - length\n"
        "    begin, end = length - _at_most(length - offset * unit + short, length), "
        "length - _at_most(length - (offset + held) * unit + short, length)\n",
        "aligned_shards_tile",
        "aligned_shards_keep_units_whole",
    ),
    # shards
    "an offset for seven parts": _shards(
        "if index < longer else longer)",
        "if index < longer and parts != 7 else longer)",
        "shards_tile",
        "shards_tile_the_dimension",
    ),
    "a length that is not dealt out": _shards(
        "if index < length % parts else 0)",
        "if index < length % parts and length != 1000003 else 0)",
        "shards_tile",
        "shards_tile_the_dimension",
    ),
    "heads of 128 in three parts": _shards(
        "return begin, end - begin",
        "return begin, end - begin - (1 if unit == 128 and parts == 3 else 0)",
        "aligned_shards_tile",
        "aligned_shards_keep_units_whole",
    ),
    "units are lost": _shards(
        "(length + unit - 1) // unit", "length // unit", "aligned_shards_tile", "aligned_shards_keep_units_whole"
    ),
    "a block of 11008": _shards(
        "start = start + length", "start = start + length + (1 if length == 11008 else 0)", _PIECES, _FUSED
    ),
    "pieces from the last to the first": _shards("return tuple(found)", "return tuple(found)[::-1]", _PIECES, _FUSED),
    "each piece twice": _shards(
        "        found.append((start + offset, held))\n",
        "        found.append((start + offset, held))\n        found.append((start + offset, held))\n",
        _PIECES,
        _FUSED,
    ),
    "no empty pieces": _shards(
        "        found.append(", "        if held > 0:\n            found.append(", _PIECES, _FUSED
    ),
    "pieces of the other end": _shards(
        "aligned_shard(length, unit, parts, index)\n        found",
        "aligned_shard(length, unit, parts, parts - 1 - index)\n        found",
        _PIECES,
        _FUSED,
    ),
    "units of one after the first block": _shards(
        "aligned_shard(length, unit, parts", "aligned_shard(length, unit if start == 0 else 1, parts", _PIECES, _FUSED
    ),
    "units of one": _shards("aligned_shard(length, unit, parts", "aligned_shard(length, 1, parts", _PIECES, _FUSED),
}
