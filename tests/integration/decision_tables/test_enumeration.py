"""Random small tables: the analysis against an enumeration of every input, which shares no code with it."""

import itertools
import random
import time

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from tpinit.decision_tables.analysis import analyse, mergeable_pairs
from tpinit.decision_tables.format import table_from
from tpinit.decision_tables.report import as_object, as_text
from tpinit.reference.errors import ConfigError

LIMIT = 10_000


@st.composite
def formulas(draw, conditions, depth=2):
    """An axiom: its text, and what it means, as a function of an input, built beside the text."""
    kind = draw(st.sampled_from(["is", "is", "not", "and", "or", "implies", "iff"])) if depth else "is"
    if kind == "is":
        name, values = draw(st.sampled_from(conditions))
        chosen = draw(st.lists(st.sampled_from(values), min_size=1, max_size=len(values), unique=True))
        if values == ["N", "Y"] and chosen == ["Y"]:
            return name, lambda given: given[name] == "Y"
        if len(chosen) == 1 and draw(st.booleans()):
            return f"{name} != {chosen[0]}", lambda given: given[name] != chosen[0]
        if len(chosen) == 1:
            return f"{name} = {chosen[0]}", lambda given: given[name] == chosen[0]
        return f"{name} in {{{', '.join(chosen)}}}", lambda given: given[name] in chosen
    left, left_means = draw(formulas(conditions, depth - 1))
    if kind == "not":
        return f"not ({left})", lambda given: not left_means(given)
    right, right_means = draw(formulas(conditions, depth - 1))
    means = {
        "and": lambda given: left_means(given) and right_means(given),
        "or": lambda given: left_means(given) or right_means(given),
        "implies": lambda given: not left_means(given) or right_means(given),
        "iff": lambda given: left_means(given) == right_means(given),
    }[kind]
    return f"({left}) {kind} ({right})", means


@st.composite
def tables(draw):
    conditions = []
    for index in range(draw(st.integers(1, 4))):
        values = draw(st.sampled_from([["N", "Y"], ["N", "Y"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"]]))
        conditions.append((f"c{index}", values))
    rows = []
    for index in range(draw(st.integers(1, 9))):
        cells = [
            draw(st.one_of(st.just(values), st.lists(st.sampled_from(values), min_size=1, unique=True)))
            for _, values in conditions
        ]
        rows.append({"id": index, "cells": cells, "outcome": draw(st.sampled_from(["x", "x", "y"]))})
    axioms = draw(st.lists(formulas(conditions), max_size=2))
    data = {
        "conditions": [
            {"name": name} if values == ["N", "Y"] else {"name": name, "values": values} for name, values in conditions
        ],
        "rows": rows,
        "axioms": [text for text, _ in axioms],
        "hit_policy": draw(st.sampled_from(["unique", "any", "first"])),
    }
    every = [
        dict(zip([name for name, _ in conditions], point, strict=True))
        for point in itertools.product(*[values for _, values in conditions])
    ]
    return data, [given for given in every if all(means(given) for _, means in axioms)], len(every)


def key(given):
    return tuple(sorted(given.items()))


def inside(where, given):
    return all(given[name] in values for name, values in where.items())


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables())
def test_the_analysis_is_what_enumeration_finds(drawn):
    data, allowed, size = drawn
    note(data)
    if not allowed:
        with pytest.raises(ConfigError, match="no input satisfies"):
            analyse(table_from(data), LIMIT)
        return
    analysis = analyse(table_from(data), LIMIT)
    assert as_text(analysis, 3)
    checked = Enumerated(data, allowed, as_object(analysis, LIMIT))
    assert checked.report["inputs"]["all"] == size
    assert checked.report["inputs"]["allowed"] == len(checked.points)
    check_gaps(checked)
    check_pairs(checked)
    check_single_rows(checked)
    check_merges(checked, mergeable_pairs(analysis))
    check_missing_axioms(data, checked.report, allowed, checked.gap, checked.covered)


class Enumerated:
    """A table with all its allowed inputs, and the report of its analysis, which is checked against them.

    `covered` are the inputs of each row, `gap` those of none.
    """

    def __init__(self, data, allowed, report):
        self.data, self.allowed, self.report = data, allowed, report
        self.domain = {condition["name"]: condition.get("values", ["N", "Y"]) for condition in data["conditions"]}
        names = list(self.domain)
        self.rows = [(dict(zip(names, row["cells"], strict=True)), row["outcome"]) for row in data["rows"]]
        self.outcomes = [outcome for _, outcome in self.rows]
        self.points = {key(given) for given in allowed}
        self.covered = [self.inside(cells) for cells, _ in self.rows]
        self.gap = self.points - set().union(*self.covered)
        self.pairs = list(itertools.combinations(range(len(self.rows)), 2))
        self.first = data["hit_policy"] == "first"

    def inside(self, where):
        return {key(given) for given in self.allowed if inside(where, given)}

    def items(self, kind):
        assert self.report[kind]["count"] == len(self.report[kind]["items"])
        return self.report[kind]["items"]

    def rows_of(self, kind):
        return {int(item["row"]) for item in self.items(kind)}

    def cells(self, row):
        return [frozenset(values) for values in self.data["rows"][row]["cells"]]


def check_gaps(checked):
    """The gaps are the inputs of no row, in cubes that hold no others; none can grow, and none is superfluous."""
    cubes = [checked.inside(item["where"]) for item in checked.items("gaps")]
    assert checked.report["gaps_complete"] is True
    assert checked.report["inputs"]["uncovered"] == len(checked.gap)
    assert set().union(*cubes) == checked.gap
    for index, (item, cube) in enumerate(zip(checked.items("gaps"), cubes, strict=True)):
        assert item["inputs"] == len(cube)
        assert key(item["witness"]) in cube
        assert cube - set().union(*(other for place, other in enumerate(cubes) if place != index))
        for name, values in item["where"].items():
            for more in set(checked.domain[name]) - set(values):
                wider = {**item["where"], name: [*values, more]}
                assert checked.inside(wider) - checked.gap


def check_pairs(checked):
    """Two rows with a common input overlap if their outcomes are equal, and conflict otherwise."""
    covered, outcomes = checked.covered, checked.outcomes
    for kind, agree in (("overlaps", True), ("conflicts", False)):
        expected = {
            (i, j) for i, j in checked.pairs if covered[i] & covered[j] and (outcomes[i] == outcomes[j]) is agree
        }
        assert {tuple(map(int, item["rows"])) for item in checked.items(kind)} == expected
        for item in checked.items(kind):
            i, j = map(int, item["rows"])
            assert key(item["witness"]) in covered[i] & covered[j]


def check_single_rows(checked):
    """Rows that no input reaches, rows that earlier ones mask, and rows whose inputs others have with their outcome."""
    covered, outcomes, first = checked.covered, checked.outcomes, checked.first
    assert checked.rows_of("unreachable") == {i for i, own in enumerate(covered) if not own}
    masked = {i for i, own in enumerate(covered) if own and own <= set().union(*covered[:i])} if first else set()
    assert checked.rows_of("masked") == masked
    same = [[j for j, other in enumerate(outcomes) if j != i and other == outcomes[i]] for i in range(len(outcomes))]
    subsumed = {i for i, own in enumerate(covered) if own and own <= set().union(*(covered[j] for j in same[i]))}
    assert checked.rows_of("subsumed") == (set() if first else subsumed)
    for item in (*checked.items("subsumed"), *checked.items("masked")):
        own, by = covered[int(item["row"])], [int(place) for place in item["by"]]
        assert key(item["witness"]) in own <= set().union(*(covered[j] for j in by))
        for left_out in by:
            assert not own <= set().union(*(covered[j] for j in by if j != left_out))


def is_mergeable(checked, i, j):
    """Whether two rows are alike in all cells but one, where neither has all values of the other."""
    covered, outcomes, cells = checked.covered, checked.outcomes, checked.cells
    differing = [(a, b) for a, b in zip(cells(i), cells(j), strict=True) if a != b]
    if not (covered[i] and covered[j] and outcomes[i] == outcomes[j] and len(differing) == 1):
        return False
    (a, b) = differing[0]
    others = [k for k in range(len(covered)) if k not in (i, j) and covered[k] and outcomes[k] == outcomes[i]]
    wider = [k for k in others if any(swallows(cells(k), cells(m)) or same_before(cells, k, m) for m in (i, j))]
    return not a <= b and not b <= a and not any(same_line(cells(k), cells(i), cells(j)) for k in wider)


def check_merges(checked, found):
    """The mergeable pairs are those of the definition, and every merge that is offered decides all inputs alike."""
    covered, rows = checked.covered, checked.rows
    if not checked.first:
        assert found == {(i, j) for i, j in checked.pairs if is_mergeable(checked, i, j)}
    for item in checked.items("mergeable"):
        places = [int(row) for row in item["rows"]]
        merged = checked.inside(item["merged"])
        assert merged == set().union(*(covered[i] for i in places))
        assert len({rows[i][1] for i in places}) == 1
        if checked.first:  # the first row takes the place of all: every input must still be decided alike
            before = {point: decided(covered, rows, point) for point in checked.points}
            kept = [own if i not in places else set() for i, own in enumerate(covered)]
            kept[places[0]] = merged
            assert before == {point: decided(kept, rows, point) for point in checked.points}


def swallows(outer, inner):
    return outer != inner and all(b <= a for a, b in zip(outer, inner, strict=True))


def same_before(cells, k, m):
    return k < m and cells(k) == cells(m)


def same_line(other, one, two):
    """Whether a row differs from two that differ in one cell only in that cell."""
    return all(o == a for o, a, b in zip(other, one, two, strict=True) if a == b)


def decided(points, rows, point):
    return next((outcome for own, (_, outcome) in zip(points, rows, strict=True) if point in own), None)


def check_missing_axioms(data, told, allowed, gap, points):
    items = told["missing_axioms"]["items"]
    covered = set().union(*points)
    excluded = []
    for item in items:
        out = {key(given) for given in allowed if inside(item["excludes"], given)}
        assert out
        assert out <= gap - covered
        assert len(out) == item["inputs"]
        assert key(item["witness"]) in out
        excluded.append(out)
        # The text is an axiom that means just that.
        amended = analyse(table_from(data, more_axioms=[item["text"]]), 1)
        assert amended.allowed == len(allowed) - len(out)
    closing = told["missing_axioms"]["closing"]
    if not gap or not covered:
        assert (items, closing) == ([], None)
    elif closing is None:
        assert set().union(*excluded) != gap
    else:
        assert set().union(*(excluded[[i["text"] for i in items].index(text)] for text in closing)) == gap
    if not covered:
        return
    # Complete: every cube of two literals that is all gap is inside one that was found.
    names = [(c["name"], c.get("values", ["N", "Y"])) for c in data["conditions"]]
    for (one, values), (two, others) in itertools.combinations(names, 2):
        for a, b in itertools.product(values, others):
            out = {key(given) for given in allowed if inside({one: [a], two: [b]}, given)}
            if out and out <= gap:
                assert any(out <= found for found in excluded)


def big_table(seed, conditions, rows, enums, axioms):
    """A table that is a partition of its inputs, cut again and again, with some rows then damaged."""
    rng = random.Random(seed)
    domains = [
        [f"v{k}" for k in range(rng.randint(3, 6))] if rng.random() < enums else ["N", "Y"] for _ in range(conditions)
    ]
    cubes = [list(domains)]
    while len(cubes) < rows:
        cube = cubes.pop(rng.randrange(len(cubes)))
        wide = [c for c, values in enumerate(cube) if len(values) > 1]
        c = rng.choice(wide)
        values = rng.sample(cube[c], len(cube[c]))
        cut = rng.randint(1, len(values) - 1)
        cubes += [[*cube[:c], part, *cube[c + 1 :]] for part in (values[:cut], values[cut:])]
    return {
        "conditions": [
            {"name": f"c{i}"} if values == ["N", "Y"] else {"name": f"c{i}", "values": values}
            for i, values in enumerate(domains)
        ],
        "rows": [{"cells": cube, "outcome": f"outcome {rng.randrange(6)}"} for cube in cubes],
        "axioms": axioms(domains, rng),
    }


def no_axioms(domains, rng):
    return []


def some_axioms(domains, rng):
    """Implications between neighbours that leave inputs: no conclusion is a premise of the opposite."""
    return [f"c{i} = {domains[i][0]} implies c{i + 1} = {domains[i + 1][0]}" for i in range(0, len(domains) - 1, 2)]


@pytest.mark.parametrize("enums", [0.0, 0.5])
@pytest.mark.parametrize("axioms", [no_axioms, some_axioms])
@pytest.mark.parametrize("damage", ["none", "holes", "wide"])
def test_twenty_conditions_and_five_hundred_rows(enums, axioms, damage):
    data = big_table(7, 20, 500, enums, axioms)
    rng = random.Random(3)
    if damage == "holes":
        del data["rows"][100:110]
    if damage == "wide":  # ten rows lose half of their conditions, so that they meet many others
        for row in rng.sample(data["rows"], 10):
            for c in rng.sample(range(20), 10):
                row["cells"][c] = "-"
    start = time.perf_counter()
    analysis = analyse(table_from(data))
    seconds = time.perf_counter() - start
    told = as_object(analysis, 20)
    print(
        f"{enums=} {axioms.__name__} {damage}: {seconds:.1f} s",
        {k: told[k]["count"] for k in ("gaps", "overlaps", "conflicts", "subsumed", "unreachable", "mergeable")},
        told["inputs"],
        told["missing_axioms"]["count"],
    )
    overlapping = told["overlaps"]["count"] + told["conflicts"]["count"]
    assert (told["gaps"]["count"] > 0) == (damage == "holes")
    assert (overlapping > 0) == (damage == "wide")
    assert told["inputs"]["allowed"] is not None
