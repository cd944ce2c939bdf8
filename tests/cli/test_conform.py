"""`tpinit conform`: the exit codes, the reports, and every malformed question refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as Xml

import pytest
from tpinit.conformance import known, report
from tpinit.conformance.vectors import load

from support.paths import ROOT

EXAMPLE = ROOT / "examples/conformance/implementation.js"
MINIATURES = "py: tpinit.conformance.miniatures."
SMOKE = load(smoke=True)
NODE = shutil.which("node")


@pytest.fixture
def conform(tpinit):
    def run(impl, *arguments, **options):
        return tpinit("conform", "--impl", impl, *arguments, **options)

    return run


def test_the_reference_conforms_to_every_vector(conform, tpinit):
    result = conform("reference", "--json", "report.json")
    assert result.returncode == 0, result.stderr.decode()
    assert f"{len(load())} answered, {len(load())} agreed" in result.stdout.decode()
    made = report.read(tpinit.cwd / "report.json")
    assert (made.name, made.selection, made.dialect) == ("reference", "all", "documented")


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_example_in_javascript_conforms_and_survives_a_search(conform):
    spelled = f"cmd: {NODE} '{EXAMPLE}'"
    result = conform(spelled, "--passes", "1")
    assert result.returncode == 0, result.stdout.decode()
    assert f"{len(load())} answered, {len(load())} agreed" in result.stdout.decode()
    searched = conform(spelled, "--search", "200")
    assert searched.returncode == 0, searched.stdout.decode()
    assert b" 0 found" in searched.stdout


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_a_mistake_in_the_example_is_found(conform, tpinit):
    source = EXAMPLE.read_text(encoding="utf-8")
    tpinit.write(source.replace("value < 1 && !(from", "value < 0 && !(from"), "impl.js")
    result = conform(f"cmd: {NODE} impl.js", "--passes", "1")
    assert result.returncode == 1
    assert "SIZE_INVALID" in result.stdout.decode()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("answering:always_wrong", 1),
        ("answering:changes_its_input", 1),
        ("answering:raises", 4),
        ("answering:skips", 4),
        ("answering:SpeaksAnything", 4),
        ("misbehaving:leaks_state", 4),
    ],
)
def test_exit_codes(conform, name, code):
    assert conform(f"{MINIATURES}{name}", "--smoke").returncode == code


def test_of_several_the_worst_exit_code_counts(tpinit):
    wrong, broken = f"{MINIATURES}answering:always_wrong", f"{MINIATURES}answering:raises"
    assert tpinit("conform", "--impl", "reference", "--impl", wrong, "--smoke").returncode == 1
    assert tpinit("conform", "--impl", broken, "--impl", wrong, "--smoke").returncode == 4


def test_a_broken_kit_is_neither_of_them(tpinit):
    shims = {
        "a vector that is wrong": "import tpinit.conformance.runner as r; r.answer_of = lambda *a: {}",
        "a bug": "import tpinit.conformance.runner as r; r.judge = None",
    }
    for shim in shims.values():
        program = f"import sys; {shim}\nfrom tpinit.cli.main import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", program, "conform", "--impl", "reference", "--smoke"],
            capture_output=True,
            timeout=60,
            cwd=tpinit.cwd,
        )
        assert done.returncode == 3
        assert b"the kit is broken" in done.stderr


def test_the_reproduction_that_is_printed_reproduces(conform, tpinit):
    told = conform(f"{MINIATURES}answering:changes_its_input", "--smoke", "--limit", "1").stdout.decode()
    (line,) = [line for line in told.splitlines() if line.startswith("  again: tpinit ")]
    again = subprocess.run(
        f"{sys.executable} -m tpinit.cli.main {line.partition('tpinit ')[2]}",
        shell=True,
        capture_output=True,
        timeout=60,
        cwd=tpinit.cwd,
    )
    assert again.returncode == 1
    assert b"1 vectors" in again.stdout
    assert b"input_changed: expected false, given true" in again.stdout


def test_reports_of_several_side_by_side(conform, tpinit):
    wrong = f"{MINIATURES}answering:always_wrong"
    assert conform(wrong, "--smoke", "--json", "wrong.json").returncode == 1
    result = conform(
        *("reference", "--smoke", "--junit", "all.xml", "--html", "all.html"), *("--compare", "wrong.json")
    )
    assert result.returncode == 1  # one of those compared is wrong
    page = (tpinit.cwd / "all.html").read_text()
    assert "always-wrong 1.0" in page
    assert "reference" in page
    assert Xml.parse(tpinit.cwd / "all.xml").getroot().get("tests") == str(len(SMOKE))
    only = tpinit("conform", "--compare", "wrong.json", "--html", "one.html")
    assert only.returncode == 1


def test_json_on_stdout_is_a_report_and_nothing_else(conform, tpinit):
    result = conform("reference", "--smoke", "--json", "-")
    assert result.returncode == 0
    tpinit.write(result.stdout, "report.json")
    assert len(report.read(tpinit.cwd / "report.json").cases) == len(SMOKE)


def test_known_failures(conform, tpinit):
    wrong = f"{MINIATURES}answering:always_wrong"
    conform(wrong, "--smoke", "--json", "wrong.json")
    made = report.read(tpinit.cwd / "wrong.json")
    tpinit.write(json.dumps(known.record(made, "==1.0", "https://example.org/4")), "known.json")
    assert conform(wrong, "--smoke", "--known", "known.json").returncode == 0
    assert conform(f"{MINIATURES}answering:always_right", "--smoke", "--known", "known.json").returncode == 0
    more = next(vector.id for vector in load() if not vector.smoke)
    assert conform(wrong, "--only", more, "--known", "known.json").returncode == 1  # wrong, and not on record


def test_choices_and_strictness_can_be_refused(conform):
    permissive, part = f"{MINIATURES}answering:permissive", f"{MINIATURES}answering:outcome_only"
    allowed = conform(permissive, "--smoke")
    assert allowed.returncode == 0
    assert "choice row1-plain-data-parallel" in allowed.stdout.decode()
    assert conform(permissive, "--smoke", "--no-choices").returncode == 1
    assert conform(part, "--smoke").returncode == 0
    assert conform(part, "--smoke", "--strict").returncode == 1


def test_search_writes_vectors_that_find_it_again(conform, tpinit):
    magic = f"{MINIATURES}answering:wrong_in_one_integer"
    assert conform(magic, "--smoke").returncode == 0
    found = conform(magic, "--search", "400", "--found", "found.jsonl")
    assert found.returncode == 1, found.stdout.decode()
    assert conform(magic, "--vectors", "found.jsonl").returncode == 1
    assert conform("reference", "--vectors", "found.jsonl").returncode == 0


def test_jobs_and_fresh_processes_give_the_same_answers(conform):
    few = [option for vector in SMOKE[:4] for option in ("--only", vector.id)]
    for options in (("--jobs", "2"), ("--fresh",)):
        result = conform(f"{MINIATURES}answering:always_right", *few, *options)
        assert result.returncode == 0, result.stdout.decode()


def test_what_is_in_this_folder_is_found(conform, tpinit):
    tpinit.write("def adapter(case):\n    return {'outcome': 'error'}\n", "mine.py")
    result = conform("py: mine:adapter", "--smoke", script=True)
    assert result.returncode == 1, result.stderr.decode()
    assert "adapter 0" in result.stdout.decode()


BAD_EXPECTATION = json.dumps({**SMOKE[0].to_json(), "expected": {**SMOKE[0].expected, "violations": ["SIZE_MISSING"]}})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("no implementation to test",)),
        (("--impl", "no-such"), ("'no-such'", "reference")),
        (("--impl", "py: no.such:thing"), ("no such module",)),
        (("--impl", "java: x"), ("Legal",)),
        (("--impl", "reference", "--dialect", "loose"), ("'loose'", "documented")),
        (("--impl", "reference", "--only", "r99-nothing"), ("'r99-nothing'",)),
        (("--impl", "reference", "--vectors", "none.jsonl"), ("none.jsonl",)),
        (("--impl", "reference", "--vectors", "bad.jsonl"), ("its expected answer is not the contract's",)),
        (("--impl", "reference", "--known", "none.json"), ("none.json",)),
        (("--impl", "reference", "--known", "bad.jsonl"), ("bad.jsonl",)),
        (("--impl", "reference", "--compare", "a.json"), ("--html",)),
        (("--impl", "reference", "--compare", "bad.jsonl", "--html", "a.html"), ("bad.jsonl",)),
        (("--impl", "reference", "--json", "no/such/folder.json"), ("folder",)),
        (("--impl", "reference", "--impl", "reference", "--json", "a.json"), ("one --impl",)),
        (("--impl", "reference", "--found", "a.jsonl"), ("--search",)),
        (("--impl", "reference", "--jobs", "2"), ("--jobs",)),
        (("--impl", "reference", "--fresh"), ("--fresh",)),
        (("--impl", "reference", "--jobs", "0"), ("'0'",)),
        (("--impl", "reference", "--timeout", "never"), ("'never'",)),
    ],
)
def test_malformed_questions(tpinit, refused, arguments, words):
    tpinit.write(BAD_EXPECTATION, "bad.jsonl")
    refused(tpinit("conform", *arguments), *words)


def test_an_adapter_that_is_not_installed_says_what_to_install(tpinit, refused):
    program = (
        "import sys, tpinit.conformance.adapters as a; a.named = lambda: ['deepspeed']; a.resolve_object = None\n"
        "def missing(path):\n"
        "    try:\n        import no_such_library\n"
        "    except ModuleNotFoundError as error:\n"
        "        raise a.AdapterError('it needs no_such_library, which is not installed here') from error\n"
        "a.resolve_object = missing\n"
        "from tpinit.cli.main import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "conform", "--impl", "deepspeed"], capture_output=True, timeout=60
    )
    refused(done, "pip install 'tpinit[deepspeed]'")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_whoever_is_asked_ends_with_the_command(tpinit, jobs):
    # Asked a case, it neither answers nor minds being asked to end.
    tpinit.write(
        "import os, signal, time\n"
        "def adapter(case):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    open(f'pid.{os.getpid()}', 'w').close()\n"
        "    time.sleep(300)\n",
        "hangs.py",
    )
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tpinit.cli.main", "conform", "--smoke", "--timeout", "3", "--jobs", jobs),
            *("--impl", "py: hangs:adapter"),
        ],
        cwd=tpinit.cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 100
        while len(list(tpinit.cwd.glob("pid.*"))) < int(jobs) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=100)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + signal.SIGTERM
    pids = [int(path.suffix[1:]) for path in tpinit.cwd.glob("pid.*")]
    assert len(pids) >= int(jobs)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
