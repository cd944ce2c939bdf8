"""The page that compares implementations, in a real browser: read, narrowed, and safe whatever they answer."""

import pytest
from tpinit.conformance.adapters.inprocess import CallableAdapter
from tpinit.conformance.html import page
from tpinit.conformance.miniatures.answering import always_right, always_wrong, outcome_only, permissive
from tpinit.conformance.runner import RunOptions, conform
from tpinit.conformance.vectors import load

SMOKE = load(smoke=True)
HOSTILE = "</pre><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
SHOWN = "[...document.querySelectorAll('#vectors > tbody > tr')].filter(row => row.offsetHeight > 0)"


def hostile(case):
    raise ValueError(HOSTILE)


hostile.implementation = {"name": f"hostile {HOSTILE}", "version": "1"}
ANSWERS = (always_right, always_wrong, permissive, outcome_only, hostile)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    reports = [conform(lambda one=one: CallableAdapter(one), SMOKE, RunOptions(spelled="x")) for one in ANSWERS]
    path = tmp_path_factory.mktemp("page") / "compare.html"
    path.write_text(page(reports), encoding="utf-8")
    return path.as_uri()


def count(browser):
    return browser.ask(f"{SHOWN}.length")


def test_answered_and_agreed_stand_apart_row_by_row(browser, url):
    browser.open(url)
    rows = browser.ask(
        "[...document.querySelectorAll('#rows > tbody > tr')].map(r => [...r.cells].map(c => c.innerText))"
    )
    assert [cells[0] for cells in rows] == [str(row) for row in range(1, 13)]
    right, wrong, *_, failing = rows[1][1:]
    assert right.split("\n") == ["answered 1/1", "agreed 1/1"]
    assert wrong.split("\n") == ["answered 1/1", "agreed 0/1", "wrong 1"]
    assert failing.split("\n") == ["answered 0/1", "agreed 0/1", "broken 1"]
    assert "permitted 1" in rows[0][3]
    fields = browser.ask("document.querySelector('#fields').innerText")
    assert f"answered 0/{len(SMOKE)}" in fields
    assert "row5-creates-group" in browser.ask("document.querySelector('#implementations').innerText")


def test_the_vectors_can_be_narrowed(browser, url):
    browser.open(url)
    assert count(browser) == len(SMOKE)
    choose = "form.elements.{}.value = '{}'; form.dispatchEvent(new Event('input'))"
    browser.ask(choose.format("row", "3"))
    assert count(browser) == sum(vector.row == 3 for vector in SMOKE)
    browser.ask(choose.format("row", ""))
    browser.ask(choose.format("kind", "permitted"))
    assert count(browser) == 2
    browser.ask(choose.format("kind", ""))
    browser.type("input[name=text]", "size-missing")
    assert 0 < count(browser) < len(SMOKE)
    assert browser.ask("document.getElementById('shown').value").startswith(f"{count(browser)} of {len(SMOKE)}")


def test_a_divergence_opens_and_shows_its_reproduction(browser, url):
    browser.open(url)
    text = browser.ask(
        "(() => { const it = document.querySelector('#vectors td details summary.wrong').parentElement;"
        " it.querySelector('summary').click(); return it.innerText; })()"
    )
    assert "expected" in text
    assert "tpinit conform --impl x --only r01-" in text


def test_what_an_implementation_says_stays_text_and_nothing_is_fetched(browser, url):
    browser.open(url)
    assert "window.hacked" in browser.ask("document.body.textContent")
    assert browser.ask("window.hacked === undefined")
    assert browser.ask("document.images.length") == 0
    assert browser.requests() == [url]
    assert browser.complaints() == []


def test_the_policy_would_stop_it_even_then(browser, url, tmp_path):
    # The control: the same page with one hole torn into its escaping.
    source = page([conform(lambda: CallableAdapter(always_right), SMOKE)]).replace("</h1>", f"</h1>{HOSTILE}")
    (tmp_path / "torn.html").write_text(source)
    browser.open((tmp_path / "torn.html").as_uri())
    assert browser.ask("window.hacked === undefined")
    assert browser.complaints() != []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_either_scheme(browser, url, scheme):
    browser.open(url, width=400, scheme=scheme)
    assert browser.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.ask(
        "getComputedStyle(document.querySelector('.wrong')).color !== getComputedStyle(document.body).color"
    )
