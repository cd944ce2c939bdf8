"""A resolver that is wrong in one place, or whose numbers are too short, fails some vector."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from tpinit.conformance.vectors import (
    answer_of,
    load,
    manifest,
    to_inputs,
)
from tpinit.proofs.edited_source import edited
from tpinit.reference.resolver import resolve
from tpinit.spec.vocabulary import Inputs, Mpu

VECTORS = load()
MANIFEST = manifest()


def failed(implementation, vectors=VECTORS):
    return [v.id for v in vectors if answer_of(implementation(to_inputs(v.input)), v.input["groups"]) != v.expected]


def test_the_shipped_resolver_fails_none():
    assert failed(resolve) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("section.autotp_size == 0 and section.tp_size is None and inputs.call is None", "section.autotp_size == 0"),
        ("return None if section_disabled(inputs) else inputs.section", "return inputs.section"),
        ("not in_scope(inputs) and inputs.mpu is None", "not in_scope(inputs)"),
        ("call.tp_group is None and live_section(inputs) is None and", "live_section(inputs) is None and"),
        ("live_section(inputs) is None and inputs.mpu is None", "live_section(inputs) is inputs.mpu is inputs.mesh"),
        ("given.value < 1 and not", "given.value < 0 and not"),
        ("given.source is Source.CONFIG_AUTOTP_SIZE and given.value == 0", "given.value == 0"),
        ("return in_scope(inputs) and bool(_differing_groups(inputs))", "return bool(_differing_groups(inputs))"),
        ("not excepted and one.value.identity", "one.value.identity"),
        ("one.value.identity != other.value.identity", "one.value.size != other.value.size"),
        ("size >= 1 and inputs.world_size % size != 0", "size >= 1 and inputs.world_size < size"),
        ("not created(inputs) or not sizes", "live_section(inputs) is None or not sizes"),
        ("    if not in_scope(inputs):\n        return Effective()\n", ""),
        ("given[0].value for other in given[1:]", "given[0].value for other in given[1:2]"),
        ("inputs.mpu is not None:\n        groups", "inputs.mpu is not None and not groups:\n        groups"),
        ("is not None and not given_sizes(inputs)", "is not None and not given_sizes(inputs) and not inputs.mpu"),
        ("sizes and given.value.size != sizes[0].value", "sizes and given.value.size > sizes[0].value"),
    ],
)  # fmt: skip
def test_a_resolver_that_is_wrong_in_one_place_fails_some(old, new):
    assert failed(edited(old, new).resolve)


def test_a_resolver_that_is_written_otherwise_and_is_right_fails_none():
    """Out of scope a precision is the only dtype that can be given, so that nothing differs there anyway."""
    same = edited("return in_scope(inputs) and _differ(given_dtypes(inputs))", "return _differ(given_dtypes(inputs))")
    assert failed(same.resolve) == []


def test_wrong_in_one_class_of_one_family_fails_that_classs_vector():
    """Each class in turn: an implementation that is right everywhere else fails, for it fails on the witness."""
    by_id = {vector.id: vector for vector in VECTORS}
    for family in MANIFEST["families"].values():
        for name in family["classes"].values():
            target = to_inputs(by_id[name].input)

            def wrong(inputs, target=target):
                decision = resolve(inputs)
                return replace(decision, row=0) if inputs == target else decision

            assert failed(wrong, [by_id[name]]) == [name]


def in_32_bits(inputs):
    """The resolver, were its sizes 32-bit integers that wrap around."""

    def wrapped(size):
        return None if size is None else (size + 2**31) % 2**32 - 2**31

    return resolve_with(inputs, wrapped)


def in_floats(inputs):
    """The resolver, were its sizes 32-bit floats."""

    def rounded(size):
        return None if size is None else int(struct.unpack("f", struct.pack("f", size))[0])

    return resolve_with(inputs, rounded)


def resolve_with(inputs, change):
    groups = [inputs.call and inputs.call.tp_group, inputs.section and inputs.section.tp_group, inputs.mesh]
    groups = [group and replace(group, size=max(change(group.size), 1)) for group in groups]
    mpu = inputs.mpu and Mpu(replace(inputs.mpu.tp_group, size=max(change(inputs.mpu.tp_group.size), 1)))
    call, section = inputs.call, inputs.section
    return resolve(
        Inputs(
            max(change(inputs.world_size), 1),
            call and replace(call, tp_size=change(call.tp_size), tp_group=groups[0]),
            section
            and replace(
                section,
                autotp_size=change(section.autotp_size),
                tp_size=change(section.tp_size),
                tp_group=groups[1],
            ),
            inputs.precision,
            mpu,
            groups[2],
        )
    )


@pytest.mark.parametrize("wrong", [in_32_bits, in_floats])
def test_only_the_boundaries_notice_numbers_that_are_too_short(wrong):
    edges = set(MANIFEST["boundaries"])
    assert failed(wrong, [v for v in VECTORS if v.id in edges])
    assert failed(wrong, [v for v in VECTORS if v.id not in edges]) == []
