"""What ranks report, how reports are compared, and what an error says of the ranks that differ."""

from __future__ import annotations

from typing import Any

import pytest
from tpinit.reference.errors import ConfigError, DecisionError, Problem
from tpinit.reference.resolver import resolve
from tpinit.runtime.errors import AgreementError
from tpinit.runtime.groups.agreement import (
    RankReport,
    check_replicas,
    check_reports,
    describe_error,
    flatten,
    gather_reports,
    read_report,
    report_text,
)
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.spec.vocabulary import Inputs

from support.thread_ranks import over_ranks


class Odd:
    """A value that JSON has no form for."""


class Mute(Exception):
    """An error whose text can't be made."""

    def __str__(self) -> str:
        raise ValueError("no text")


def said(*reports: RankReport, **options: Any) -> tuple[list[str], list[str]]:
    """Return the lines and the differing fields of the error for these reports; two empty lists for none."""
    try:
        check_reports(reports, **options)
    except AgreementError as error:
        return str(error).splitlines(), list(error.fields)
    return [], []


FULL = RankReport({"a": [1, None], "b": "x"}, {"r": 1.5}, (0, 2), (0, 1), "tp", "dp", "it failed")


def test_a_report_is_read_as_it_was_written() -> None:
    for report in (FULL, RankReport()):
        assert read_report(report_text(report)) == report
    assert isinstance(read_report(report_text(FULL)).tp_ranks, tuple)
    assert isinstance(read_report(report_text(FULL)).dp_ranks, tuple)


def test_a_value_without_a_form_is_named_by_its_type_and_what_cannot_be_written_is_an_error() -> None:
    assert read_report(report_text(RankReport({"a": Odd()}))).fields == {"a": "<Odd>"}
    round_trip: dict[str, object] = {}
    round_trip["a"] = round_trip
    broken = read_report(report_text(RankReport(round_trip)))
    assert broken.fields == {}
    assert broken.error == "the report can't be written: ValueError: Circular reference detected"
    assert read_report(report_text(RankReport(round_trip, error="first"))).error == "first"


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("odd", [None, 0, 1])
def test_every_rank_gets_the_report_of_every_rank_in_order(size: int, odd: int | None) -> None:
    def work(view: GroupView) -> list[RankReport]:
        fields: dict[str, object] = {"a": view.position if view.position == odd else 7}
        return gather_reports(RankReport(fields), view.group)

    for found in over_ranks(size, work):
        assert [report.fields["a"] for report in found] == [rank if rank == odd else 7 for rank in range(size)]
        assert all(report is found[0] for report in found) is (odd is None)


def test_equal_reports_pass_and_so_do_equal_errors() -> None:
    one = RankReport({"a": 1}, error="same")
    assert said(one, one) == said(one, RankReport({"a": 1}, error="same")) == ([], [])
    assert said(RankReport({"a": 1, "b": 2}), RankReport({"b": 2, "a": 1})) == ([], [])
    assert said(RankReport({"a": {"x": 1, "y": 2}}), RankReport({"a": {"y": 2, "x": 1}})) == ([], [])


def test_a_difference_names_the_field_the_ranks_and_the_values() -> None:
    reports = [RankReport({"a": 1, "b": 0}), RankReport({"a": 2, "b": 0}), RankReport({"a": 1, "b": 0})]
    title = "ranks disagree, and nothing was changed:"
    assert said(*reports) == ([title, "  a: ranks 0, 2 have 1; rank 1 has 2"], ["a"])
    assert said(*reports, ranks=[4, 5, 9], title="T") == (["T:", "  a: ranks 4, 9 have 1; rank 5 has 2"], ["a"])
    assert said(RankReport({"a": 1}), RankReport({"b": 1})) == (
        [title, "  a: rank 0 has 1; rank 1 has absent", "  b: rank 0 has absent; rank 1 has 1"],
        ["a", "b"],
    )


def test_errors_that_differ_are_shown_with_the_ranks_that_had_none() -> None:
    failed, fine = RankReport({"a": 1}, error="E"), RankReport({"a": 2, "b": 1})
    lines, fields = said(failed, fine, fine)
    assert lines[1:] == ["  a: rank 0 has 1; ranks 1, 2 have 2", "  rank 0: E", "  ranks 1, 2: no error"]
    assert fields == ["a", "error"]
    lines, fields = said(failed, RankReport({"a": 1}, error="F"))
    assert (lines[1:], fields) == (["  rank 0: E", "  rank 1: F"], ["error"])
    # All failed alike: what only some reported is no difference, what all reported is.
    assert said(RankReport({"a": 1}, error="E"), RankReport({"a": 1, "b": 1}, error="E")) == ([], [])
    lines, fields = said(RankReport({"a": 1}, error="E"), RankReport({"a": 2}, error="E"))
    assert (lines[1:], fields) == (["  a: rank 0 has 1; rank 1 has 2"], ["a"])


@pytest.mark.parametrize("count", [12, 13])
def test_twelve_fields_are_shown(count: int) -> None:
    fields = [{f"f{index}": rank for index in range(count)} for rank in (0, 1)]
    lines, names = said(*(RankReport({**each}) for each in fields))
    assert len(lines) == 14 if count == 13 else 13
    assert [line for line in lines if "more" in line] == (["  and 1 more fields"] if count == 13 else [])
    assert len(names) == count


def test_a_long_value_is_cut_and_values_that_differ_behind_the_cut_are_named_so() -> None:
    exact, one, other = "x" * 158, "x" * 160 + "a", "x" * 160 + "b"  # JSON adds two quotes
    (_, line), _ = said(RankReport({"a": exact}), RankReport({"a": one}))
    assert line == f'  a: rank 0 has "{exact}"; rank 1 has "{"x" * 159}...'
    (_, line), _ = said(RankReport({"a": one}), RankReport({"a": other}))
    assert line == "  a: values on ranks 0, 1 that differ after their first 160 characters"


def test_replicas_are_compared_within_their_groups() -> None:
    one, other = RankReport(replica={"m": 1}), RankReport(replica={"m": 2})
    assert check_replicas([one], [[0]]) is True
    assert check_replicas([one, one, one], [[0, 1, 2]]) is True
    assert check_replicas([one, other, one], [[0, 2], [1]]) is False
    with pytest.raises(AgreementError, match="m: rank 0 has 1; rank 1 has 2"):
        check_replicas([one, other, one], [[0, 2], [0, 1]])


def test_the_text_of_an_error_has_what_is_equal_on_all_ranks() -> None:
    assert describe_error(ValueError("v")) == "ValueError: v"
    assert describe_error(Mute()) == "Mute: an error whose text can't be made"
    problems = ConfigError([Problem("a.b", "1", "is wrong", "mend it"), Problem("c", "2", "is too", "mend it")])
    assert describe_error(problems) == "ConfigError: a.b: is wrong; c: is too"
    assert describe_error(DecisionError(resolve(Inputs(1)))) == "DecisionError: row 1: NO_TP_INTENT"


def test_leaves_have_dotted_paths() -> None:
    nested = {"a": {"b": [1, {"c": (2, 3)}], "empty": {}}, "list": []}
    leaves = {"a.b[0]": 1, "a.b[1].c[0]": 2, "a.b[1].c[1]": 3, "a.empty": {}, "list": []}
    assert flatten(nested, "") == leaves
    assert flatten(nested, "top") == {f"top.{path}": value for path, value in leaves.items()}
    assert flatten(7, "x") == {"x": 7}
