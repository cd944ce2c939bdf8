"""The page of the ledger, looked at in a real browser: read, filtered, darkened, and on a phone."""

import json
import os
import subprocess
import sys

import pytest
from tpinit.proofs.ledger.page import page

from support.paths import ROOT

LEDGER = json.loads((ROOT / "docs/ledger.json").read_text(encoding="utf-8"))
VISIBLE = "[...document.querySelectorAll('#theorems tbody tr')].filter(row => row.offsetHeight > 0)"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "index.html"
    times = {"total": 1.0, "theorems": {name: {"total": 0.5} for name in LEDGER["theorems"]}}
    path.write_text(page({**LEDGER, "times": times}), encoding="utf-8")
    return path.as_uri()


def shown(browser):
    return browser.ask(f"{VISIBLE}.map(row => row.querySelector('.name').textContent)")


def luminance(browser, expression):
    red, green, blue = json.loads("[" + browser.ask(expression).partition("(")[2].rstrip(")") + "]")[:3]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (red / 255, green / 255, blue / 255)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(browser, selector, behind):
    front = luminance(browser, f"getComputedStyle(document.querySelector({json.dumps(selector)})).color")
    back = luminance(browser, f"getComputedStyle(document.querySelector({json.dumps(behind)})).backgroundColor")
    return (max(front, back) + 0.05) / (min(front, back) + 0.05)


def overflow(browser):
    return browser.ask("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_the_table_shows_every_theorem_with_its_verdict(browser, url):
    browser.open(url)
    assert shown(browser) == list(LEDGER["theorems"])
    for row, (name, entry) in enumerate(LEDGER["theorems"].items()):
        text = browser.ask(f"{VISIBLE}[{row}].innerText")
        statement = entry["statement"].replace("`", "")
        assert all(part in text for part in (name, entry["clause"], statement, entry["verdict"])), text
        assert all(oracle in text for oracle in entry["oracles"])


def test_the_evidence_opens(browser, url):
    browser.open(url)
    assert browser.ask("document.querySelector('#theorems dl').checkVisibility({contentVisibilityAuto: true})") is False
    browser.ask("document.querySelector('#theorems summary').click()")
    # It is shown with the next frame.
    browser.wait_for("document.querySelector('#theorems dl').checkVisibility({contentVisibilityAuto: true})")
    first = next(iter(LEDGER["theorems"].values()))
    text = browser.ask("document.querySelector('#theorems dl').innerText")
    assert first["formula"] in text
    assert first["control"]["says"] in text
    assert all(need in text for need in first["needs"])


def test_rows_violations_and_needs_are_shown(browser, url):
    browser.open(url)
    for key, expected in (
        ("rows", len(LEDGER["witnesses"]["rows"])),
        ("codes", len(LEDGER["witnesses"]["codes"])),
        ("necessity", len(LEDGER["necessity"])),
    ):
        assert browser.ask(f"document.querySelectorAll('[aria-labelledby={key}] tbody tr').length") == expected > 0


def test_a_clause_hides_the_theorems_of_others(browser, url):
    browser.open(url)
    options = browser.ask("[...document.querySelectorAll('#clause option')].map(option => option.value)")
    assert options == ["", *LEDGER["clauses"]]
    for clause in options[1:]:
        browser.ask(f"clause.value = '{clause}'; clause.dispatchEvent(new Event('change'))")
        expected = [name for name, entry in LEDGER["theorems"].items() if entry["clause"] == clause]
        assert shown(browser) == expected != []
        status = browser.ask("document.getElementById('shown').textContent")
        assert status == f"{len(expected)} of {len(LEDGER['theorems'])} theorems"
    browser.ask("clause.value = ''; clause.dispatchEvent(new Event('change'))")
    assert len(shown(browser)) == len(LEDGER["theorems"])


def test_words_hide_the_theorems_that_lack_them(browser, url):
    browser.open(url)
    browser.type("#words", "Disjoint ROWS")
    assert shown(browser) != []
    for name in LEDGER["theorems"]:
        text = f"{name} {LEDGER['theorems'][name]['statement']}".lower()
        assert (name in shown(browser)) == ("disjoint" in text and "rows" in text), name
    browser.press("Enter", 13)  # must not leave the page
    browser.type("#words", " nowhere")
    assert shown(browser) == []
    assert browser.ask("location.href") == url


def test_it_is_dark_where_that_is_preferred_and_where_it_is_asked_for(browser, url):
    browser.open(url, scheme="light")
    browser.ask("localStorage.clear()")
    browser.open(url, scheme="light")
    assert luminance(browser, BACKGROUND) > 0.8
    browser.prefer("dark")
    assert luminance(browser, BACKGROUND) < 0.05
    browser.wait_for("theme.getAttribute('aria-pressed') === 'true'")  # the page is told with an event
    browser.ask("theme.click()")
    assert luminance(browser, BACKGROUND) > 0.8
    assert browser.ask("theme.getAttribute('aria-pressed')") == "false"
    browser.open(url, scheme="dark")  # the choice is kept
    assert luminance(browser, BACKGROUND) > 0.8
    browser.ask("localStorage.clear()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read(browser, url, scheme):
    browser.open(url, scheme=scheme)
    for selector, behind in (
        (".statement", "#theorems"),
        ("#theorems .quiet", "#theorems"),
        ("summary", "#theorems"),
        (".badge", ".badge"),
        (".lead.quiet", "body"),
    ):
        assert contrast(browser, selector, behind) >= 4.5, selector


@pytest.mark.parametrize("width", [320, 390, 800, 1280])
def test_no_width_needs_scrolling_sideways(browser, url, width):
    browser.open(url, width=width)
    browser.ask("for (const one of document.querySelectorAll('details')) one.open = true")
    assert overflow(browser) == 0
    assert browser.ask(f"innerWidth === {width}")
    outside = (
        "[...document.querySelectorAll('main *')].filter(one => one.offsetWidth && one.closest('thead') === null && "
    )
    outside += "one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 99))"
    assert browser.ask(outside) == []


def test_a_phone_shows_cards_of_readable_size(browser, url):
    browser.open(url, width=390, height=844)
    assert browser.ask("getComputedStyle(document.querySelector('#theorems tbody tr')).display") == "grid"
    assert browser.ask("parseFloat(getComputedStyle(document.querySelector('.statement')).fontSize)") >= 16
    assert browser.ask("document.querySelector('#theme').offsetHeight") >= 40


def test_it_works_by_keyboard_and_says_what_its_fields_are(browser, url):
    browser.open(url)
    order = []
    for _ in range(4):
        browser.press("Tab", 9)
        order.append(browser.ask("document.activeElement.id || document.activeElement.tagName"))
        assert browser.ask("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert order == ["clause", "words", "theme", "SUMMARY"]
    unnamed = "[...document.querySelectorAll('input, select, button')].filter(one => "
    unnamed += "!(one.labels && one.labels.length) && !one.textContent.trim()).length"
    assert browser.ask(unnamed) == 0


def test_it_asks_for_nothing_and_breaks_nothing(browser, url):
    browser.open(url)
    assert browser.requests() == [url]
    assert browser.complaints() == []
    # The page's own policy keeps it so: a request is refused, and the browser says so.
    browser.ask("new Image().src = 'http://127.0.0.1:9/x.png'")
    browser.wait_for("true")
    assert any("Content Security Policy" in text for text in browser.complaints())


def test_what_a_ledger_says_is_text_and_never_markup(browser, tmp_path):
    name = next(iter(LEDGER["theorems"]))
    trap = "<img src=x onerror=\"document.title='caught'\">"
    entry = {**LEDGER["theorems"][name], "statement": trap, "verdict": trap, "detail": trap, "clause": f'"{trap}'}
    path = tmp_path / "trap.html"
    path.write_text(page({**LEDGER, "theorems": {trap: entry}}), encoding="utf-8")
    browser.open(path.as_uri())
    assert browser.ask("document.images.length") == 0
    assert trap in browser.ask("document.querySelector('.statement').textContent")
    assert "proved" not in browser.ask("document.querySelector('.badge').className")


def test_a_missing_browser_is_a_failure_where_one_is_required(tmp_path):
    path = tmp_path / "empty"
    path.mkdir()
    for required, status, said in (("required", 1, "TPINIT_BROWSER=required"), ("", 0, "there is no chromium")):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-k", "test_the_evidence_opens", __file__],
            cwd=ROOT,
            env={**os.environ, "PATH": str(path), "TPINIT_BROWSER": required, "PYTEST_ADDOPTS": ""},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, said in done.stdout) == (status, True), done.stdout
