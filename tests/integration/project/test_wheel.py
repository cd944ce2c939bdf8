"""The wheel, installed without extras into an empty environment, and used from there."""

import json
import subprocess
import sys
import venv
import zipfile

import pytest

from support.paths import ROOT

PORTIONS = {
    "spec": ROOT / "spec/tpinit/spec",
    "reference": ROOT / "reference/tpinit/reference",
    "step": ROOT / "reference/tpinit/step",
    "cli": ROOT / "reference/tpinit/cli",
    "runtime": ROOT / "runtime/tpinit/runtime",
    "proofs": ROOT / "proofs/tpinit/proofs",
    "decision_tables": ROOT / "proofs/tpinit/decision_tables",
    "conformance": ROOT / "tests/tpinit/conformance",
}
ADAPTER = "tpinit/conformance/adapters/deepspeed/"
# Nothing that an extra brings may be needed by the resolver, so none of it is there.
HEAVY = ("torch", "z3", "cvc5", "crosshair", "hypothesis", "pytest", "transformers", "safetensors", "hjson")


def call(*command, cwd):
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    built = call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The bin folder of an empty environment that holds the wheel and nothing else."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    pip = (sys.executable, "-m", "pip", "--python", home / "bin/python", "install", "--quiet")
    result = call(*pip, "--no-deps", "--no-index", wheel, cwd=home)
    assert result.returncode == 0, result.stdout + result.stderr
    return home / "bin"


@pytest.fixture
def python(installed, tmp_path):
    def run(source):
        return call(installed / "python", "-c", source, cwd=tmp_path)

    return run


@pytest.fixture
def tpinit(installed, tmp_path):
    def run(*arguments):
        return call(installed / "tpinit", *arguments, cwd=tmp_path)

    return run


def test_the_wheel_holds_every_file_of_every_portion(names):
    expected = {
        f"tpinit/{portion}/{path.relative_to(folder).as_posix()}"
        for portion, folder in PORTIONS.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected - set(names) == set()
    assert {f"tpinit/{portion}/py.typed" for portion in PORTIONS} <= set(names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_holds_nothing_else(names):
    others = [name for name in names if not name.startswith(tuple(f"tpinit/{portion}/" for portion in PORTIONS))]
    assert all(".dist-info/" in name for name in others), others
    assert "tpinit/__init__.py" not in names
    assert not [name for name in names if "__pycache__" in name]


def of_the_study(names):
    """The files of the study of DeepSpeed: those in its folder, and its modules in the folder of the adapter."""
    modules = {path.name for path in (ROOT / "tests/studies/deepspeed").glob("*.py")} - {"__init__.py"}
    assert len(modules) >= 7, modules
    moved = {ADAPTER + module for module in modules}
    return [name for name in names if "studies" in name.split("/") or name in moved]


def test_the_adapter_of_deepspeed_is_in_the_wheel_and_its_study_is_not(names):
    assert {ADAPTER + name for name in ("adapter.py", "host.py", "jobs.py", "ranks/server.py")} <= set(names)
    assert of_the_study(names) == []


@pytest.mark.parametrize("name", ["studies/deepspeed/findings.py", f"{ADAPTER}campaign.py", f"{ADAPTER}__main__.py"])
def test_a_wheel_with_the_study_would_be_seen(names, name):
    assert of_the_study([*names, name]) == [name]


def test_the_installed_kit_has_the_adapter_of_deepspeed_and_not_its_study(python, tpinit):
    study = python("import importlib.util as u; print(u.find_spec('studies'))")
    assert study.stdout.strip() == "None", study.stdout + study.stderr
    asked = tpinit("conform", "--impl", "deepspeed", "--smoke")
    assert asked.returncode == 4, asked.stdout + asked.stderr
    assert "TPINIT_DEEPSPEED_PYTHON is ''" in asked.stdout + asked.stderr


def test_the_environment_is_empty(python):
    result = python(f"import importlib.util as u; print([m for m in {HEAVY!r} if u.find_spec(m)])")
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_the_resolver_resolves(python):
    result = python(
        "from tpinit.reference import resolve\n"
        "from tpinit.spec.vocabulary import Inputs, Section\n"
        "decision = resolve(Inputs(world_size=4, section=Section(autotp_size=2)))\n"
        "print(decision.row, decision.tp_size.value, decision.tp_group.source.value)\n"
    )
    assert result.stdout.split() == ["3", "2", "created"], result.stderr


def test_importing_the_reference_pulls_in_the_standard_library_alone(python):
    result = python(
        "import sys\n"
        "import tpinit.reference\n"
        "from tpinit.reference import resolve\n"
        "known = {*sys.stdlib_module_names, 'tpinit', '__main__'}\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} - known))\n"
    )
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_the_table_is_shown(tpinit):
    result = tpinit("table", "--json")
    assert [row["row"] for row in json.loads(result.stdout)] == list(range(1, 13))
    assert result.returncode == 0


def test_a_config_is_resolved(tpinit, tmp_path):
    (tmp_path / "ds.json").write_text('{"bf16": {"enabled": true}, "tensor_parallel": {"autotp_size": 2}}')
    result = tpinit("resolve", "ds.json", "--world", "4", "--json")
    assert result.returncode == 0, result.stderr
    decision = json.loads(result.stdout)
    assert (decision["row"], decision["tp_size"]["value"], decision["dtype"]["value"]) == (3, 2, "bf16")


def test_a_violation_exits_with_1(tpinit, tmp_path):
    (tmp_path / "ds.json").write_text('{"tensor_parallel": {"autotp_size": 4}}')
    result = tpinit("resolve", "ds.json", "--world", "6", "--json")
    assert result.returncode == 1, result.stderr
    assert [one["code"] for one in json.loads(result.stdout)["violations"]] == ["SIZE_NOT_DIVIDING_WORLD"]


@pytest.mark.parametrize(("command", "extras"), [("prove", "proofs"), ("train", "runtime,hf")])
def test_a_missing_extra_is_one_clear_line(tpinit, command, extras):
    result = tpinit(command)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"tpinit: error: 'tpinit {command}' needs ")
    assert f"pip install 'tpinit[{extras}]'" in result.stderr


def test_hjson_without_its_extra_names_the_extra(tpinit, tmp_path):
    (tmp_path / "ds.hjson").write_text("{\n  # a comment\n  tensor_parallel: {autotp_size: 2}\n}")
    result = tpinit("resolve", "ds.hjson", "--world", "4")
    assert result.returncode == 2
    assert "tpinit[hjson]" in result.stderr
