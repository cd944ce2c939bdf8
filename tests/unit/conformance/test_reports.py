"""Reports: whole or refused, the same story in each format, and known failures pinned exactly."""

import dataclasses
import html.parser
import json
import pathlib
import re
import xml.etree.ElementTree as Xml

import pytest
from tpinit.conformance import known, report
from tpinit.conformance.adapters import opener
from tpinit.conformance.adapters.inprocess import CallableAdapter
from tpinit.conformance.adapters.reference import adapter as resolver
from tpinit.conformance.dialects import CHOICES, permitted
from tpinit.conformance.html import page
from tpinit.conformance.junit import junit
from tpinit.conformance.messages import check_case, check_result
from tpinit.conformance.miniatures.answering import always_wrong, outcome_only, permissive, skips
from tpinit.conformance.report import CaseStatus
from tpinit.conformance.runner import RunOptions, conform
from tpinit.conformance.terminal import summary, text
from tpinit.conformance.vectors import load

SMOKE = load(smoke=True)
HOSTILE = "<script>alert(1)</script>&\"'\x00\x1b[31m\ud800"


def run(answer, vectors=SMOKE, **settings):
    return conform(lambda: CallableAdapter(answer), vectors, RunOptions(spelled="py: it:adapter", **settings))


def mixed(case):
    """Right, wrong, failing and declining, by what the case is."""
    answer = resolver(case)
    if answer["row"] == 3:
        return {**answer, "outcome": "no_autotp"}
    if answer["row"] == 4:
        raise ValueError(HOSTILE)
    return skips(case) if answer["row"] == 6 else answer


MIXED = run(mixed)
ALL = [MIXED, run(always_wrong), run(permissive), run(outcome_only), run(resolver)]


# --- JSON ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", ALL)
def test_what_is_written_is_read_back(tmp_path, made):
    path = tmp_path / "report.json"
    report.write(made, path)
    again = report.read(path)
    assert report.to_json(again) == report.to_json(made)
    assert report.exit_code(again) == report.exit_code(made)
    assert [one.name for one in tmp_path.iterdir()] == ["report.json"]


def test_the_footer_counts_and_comes_last():
    body = report.to_json(MIXED)
    assert list(body)[-1] == "footer"
    count = body["footer"]
    assert count["cases"] == len(SMOKE) == sum(count[verdict.value] for verdict in CaseStatus)
    rows = [vector.row for vector in SMOKE]
    assert count["disagreed"] == rows.count(3)
    assert count["errored"] == rows.count(4)
    assert count["skipped"] == rows.count(6)
    assert count["answered"] == len(SMOKE) - rows.count(4) - rows.count(6)
    agreed = count["fields"]["outcome"]
    assert agreed["asked"] - agreed["answered"] == rows.count(4) + rows.count(6)
    assert agreed["answered"] - agreed["agreed"] == rows.count(3)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda body: body.pop("footer"), "no footer"),
        (lambda body: body["cases"].pop(), "counts in the footer differ from the cases: cases"),
        (lambda body: body["footer"].update(agreed=99), "agreed"),
        (lambda body: body["footer"].update(more=1), "unknown keys"),
        (lambda body: body.update(footer=[]), "footer"),
        (lambda body: body["cases"][0].update(verdict="fine"), "malformed"),
        (lambda body: body["cases"][0].pop("expected"), "malformed"),
        (lambda body: body.update(cases=None), "malformed"),
        (lambda body: body.update(format="x"), "not a tpinit"),
        (lambda body: body.update(version=2), "version"),
    ],
)
def test_a_report_that_is_not_whole_is_refused(tmp_path, change, word):
    body = json.loads(json.dumps(report.to_json(MIXED)))
    change(body)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(body))
    with pytest.raises(report.ReportError, match=word):
        report.read(path)


def test_a_report_that_was_cut_short_is_refused(tmp_path):
    path = tmp_path / "report.json"
    whole = json.dumps(report.to_json(MIXED))
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(report.ReportError, match="cut short"):
        report.read(path)


def test_the_exit_codes_tell_what_happened_apart():
    assert [report.exit_code(made) for made in ALL] == [4, 1, 0, 0, 0]
    assert report.exit_code(run(skips)) == 4
    assert report.exit_code(dataclasses.replace(ALL[-1], broken="it writes more than its replies")) == 4


# --- other formats -------------------------------------------------------------------------------------


def test_junit_counts_as_the_report_does_and_holds_any_text():
    root = Xml.fromstring(junit(ALL[:2]).encode("utf-8", "replace"))
    suites = root.findall("testsuite")
    assert len(suites) == 24
    for element in (root, *suites):
        tests = element.findall(".//testcase")
        assert int(element.get("tests")) == len(tests)
        for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert int(element.get(attribute)) == sum(test.find(kind) is not None for test in tests)
    count = report.footer(MIXED)
    assert int(root.get("failures")) == count["disagreed"] + len(SMOKE)
    assert int(root.get("errors")) == count["errored"] > 0
    assert "<script>alert(1)</script>" in root.find(".//error").text
    assert "tpinit conform --impl 'py: it:adapter' --only r" in root.find(".//failure").text


class Page(html.parser.HTMLParser):
    VOID = ("meta", "input", "br")

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.links = [], [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing_else():
    made = page(ALL)
    parsed = Page(made)
    assert parsed.open == []
    assert parsed.links == []
    assert parsed.tags.count("script") == 1
    assert parsed.tags.count("table") == 4
    assert "http" not in made.replace("http-equiv", "")
    made.encode("utf-8")
    assert len(made) < 400_000


def test_text_names_every_divergence_and_its_reproduction():
    told = text(MIXED, limit=1000)
    for case in MIXED.cases:
        wrong = case.verdict in (CaseStatus.DISAGREED, CaseStatus.ERRORED)
        assert (f"--only {case.id}" in told) == wrong
    assert 'outcome: expected "error", given "no_autotp"' in told
    assert "and" in text(MIXED, limit=1)
    assert text(MIXED, limit=1).count("again:") == 1
    assert max(map(len, text(ALL[-1]).splitlines())) <= 100


def test_what_passes_with_less_than_everything_says_so():
    assert "row5-creates-group" in text(ALL[2])
    assert "1 answers permitted by it" in text(ALL[2])
    assert f"dtype.value in 0 of {len(SMOKE)} answers" in text(ALL[3])
    assert "not all fields" not in text(ALL[4])
    assert "choice" not in text(ALL[4])
    assert summary(ALL[4]).startswith("reference ")


# --- known failures ------------------------------------------------------------------------------------

WRONG = run(always_wrong)
KNOWN = known.record(WRONG, ">=1,<2", "https://example.org/issues/1")


def file(tmp_path, body):
    path = tmp_path / "known.json"
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    return path


def test_exactly_the_wrong_answers_on_record_are_expected(tmp_path):
    failures = known.read(file(tmp_path, KNOWN), {vector.id for vector in SMOKE})
    made = known.apply(WRONG, failures)
    assert {case.verdict for case in made.cases} == {CaseStatus.KNOWN}
    assert report.exit_code(made) == 0
    assert "https://example.org/issues/1" in page([made])
    # It passes, and it does not conform.
    for told in (page([made]), summary(made)):
        assert "departs as known" in told
        assert "conforms" not in told


def test_another_wrong_answer_fails_and_so_does_a_right_one(tmp_path):
    failures = known.read(file(tmp_path, KNOWN))
    other = dataclasses.replace(run(lambda case: {**always_wrong(case), "row": 12}), name="always-wrong", version="1.0")
    changed = known.apply(other, failures)
    told = {case.id: case.verdict for case in changed.cases}
    assert {told[vector.id] for vector in SMOKE if vector.row != 12} == {CaseStatus.CHANGED}
    assert {told[vector.id] for vector in SMOKE if vector.row == 12} == {CaseStatus.KNOWN}
    passes = known.apply(dataclasses.replace(ALL[-1], name="always-wrong", version="1.0"), failures)
    assert {case.verdict for case in passes.cases} == {CaseStatus.UNEXPECTED_PASS}
    assert report.exit_code(changed) == report.exit_code(passes) == 1


def test_a_failure_of_another_version_or_implementation_counts_for_nothing(tmp_path):
    failures = known.read(file(tmp_path, KNOWN))
    for different in ({"version": "2.0"}, {"name": "always-right"}):
        made = known.apply(dataclasses.replace(WRONG, **different), failures)
        assert {case.verdict for case in made.cases} == {CaseStatus.DISAGREED}


def test_a_known_crash_is_no_broken_implementation(tmp_path):
    def raising(case):
        raise ValueError("no")

    made = run(raising)
    assert report.exit_code(made) == 4
    body = known.record(made, "*", "https://example.org/2")
    assert body["failures"][0]["answer"] == {"errored": "ValueError: no"}
    assert report.exit_code(known.apply(made, known.read(file(tmp_path, body)))) == 0


@pytest.mark.parametrize(
    ("version", "versions", "holds"),
    [
        ("0.19.8", ">=0.19,<0.20", True),
        ("0.19.8+cpu", "==0.19.8", True),
        ("0.20", ">=0.19,<0.20", False),
        ("0.20.0", "==0.20", True),
        ("1.10", ">1.9", True),
        ("1.9", "!=1.9", False),
        ("1.9", "<=1.9", True),
        ("anything", "*", True),
    ],
)
def test_ranges_of_versions(version, versions, holds):
    assert known.in_range(version, versions) is holds


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"versions": "1.x"}, "version clause"),
        ({"versions": ""}, "version clause"),
        ({"link": "see the wiki"}, "not a link"),
        ({"vector": "r01-no-such"}, "there is no vector 'r01-no-such'"),
        ({"answer": {}}, "answer"),
        ({"answer": {"result": {}, "crashed": "x"}}, "answer"),
        ({"implementation": 3}, "not a string"),
        ({"more": 1}, "keys"),
    ],
)
def test_a_malformed_entry_is_told_with_its_place(tmp_path, change, word):
    bad = {**KNOWN, "failures": [KNOWN["failures"][0], {**KNOWN["failures"][1], **change}]}
    with pytest.raises(known.KnownFailuresError, match=rf"failures\[1\].*{word}"):
        known.read(file(tmp_path, bad), {vector.id for vector in SMOKE})


@pytest.mark.parametrize("body", ["[", "[]", {"failures": []}, {**KNOWN, "version": 2}, {**KNOWN, "failures": {}}])
def test_a_malformed_file_is_refused(tmp_path, body):
    with pytest.raises(known.KnownFailuresError, match=r"known\.json"):
        known.read(file(tmp_path, body))


def test_what_is_on_record_twice_is_refused(tmp_path):
    twice = {**KNOWN, "failures": KNOWN["failures"][:1] * 2}
    with pytest.raises(known.KnownFailuresError, match="twice"):
        known.read(file(tmp_path, twice))


# --- permissive choices --------------------------------------------------------------------------------


def test_a_choice_permits_its_own_departure_and_nothing_else():
    for vector in load():
        made = permitted(tuple(CHOICES), vector.input, vector.expected)
        codes = vector.expected["violations"]
        if codes == ["NO_TP_INTENT"]:
            assert [name for name, _ in made] == ["row1-plain-data-parallel"]
            assert made[0][1]["outcome"] == "no_autotp"
        elif "NO_GROUP_SOURCE" in codes and vector.input["mesh"] is None:
            assert [name for name, _ in made] == ["row5-creates-group"]
            assert made[0][1]["outcome"] == ("error" if made[0][1]["violations"] else "init_from_call")
        else:
            assert made == []


def test_a_choice_does_not_excuse_another_wrong_answer():
    wrong = run(lambda case: {**permissive(case), "row": 12})
    declared = CallableAdapter(lambda case: {**permissive(case), "row": 12})
    assert CaseStatus.PERMITTED not in {case.verdict for case in wrong.cases}
    declared.answer.choices = list(CHOICES)
    made = conform(lambda: declared, SMOKE)
    assert CaseStatus.PERMITTED not in {case.verdict for case in made.cases}


def test_row_5_created_is_row_3_but_for_where_the_fields_come_from():
    section = {"autotp_size": None, "tp_size": None, "dtype": None, "tp_group": None}
    for vector in load():
        for name, answer in permitted(("row5-creates-group",), vector.input, vector.expected):
            created = resolver({**vector.input, "section": section})
            created = {**created, "row": 5}
            if created["outcome"] != "error":
                created["outcome"] = "init_from_call"
            assert answer == created, name


def test_the_opener_of_the_reference_is_the_resolver():
    assert opener("reference")().start().name == "reference"


# --- the manual ----------------------------------------------------------------------------------------

MANUAL = (pathlib.Path(__file__).resolve().parents[3] / "docs/conformance.md").read_text(encoding="utf-8")


def test_the_manual_names_every_verdict_and_choice():
    named = set(re.findall(r"`([\w-]+)`", MANUAL))
    assert {verdict.value for verdict in CaseStatus} - named == set()
    assert set(CHOICES) - named == set()


def test_the_case_the_result_and_the_known_failure_of_the_manual_are_legal(tmp_path):
    case, result, failures = map(json.loads, re.findall(r"```json\n(.*?)```", MANUAL, re.S))
    assert check_case(case) == []
    assert check_result(result, case) == []
    assert resolver(case) == result
    assert known.read(file(tmp_path, failures))[0].implementation == "acme"
