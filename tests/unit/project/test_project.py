"""The frame: what is pinned, shipped and configured is what the project really needs."""

import importlib.metadata
import re
import subprocess
import sys

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.paths import ROOT

EXTRAS = ("proofs", "runtime", "hf", "conformance", "dev", "hjson")


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def needed(name, extras=(), seen=None):
    """The names of all distributions that one needs in this environment, itself included."""
    seen = {} if seen is None else seen
    name = canonicalize_name(name)
    if set(extras) <= seen.get(name, set()) and name in seen:
        return seen
    seen.setdefault(name, set()).update(extras)
    for text in importlib.metadata.requires(name) or []:
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in (*extras, "")):
            needed(requirement.name, tuple(requirement.extras), seen)
    return seen


def test_everything_that_is_installed_is_pinned():
    pinned = {canonicalize_name(pin.name) for pin in pins()}
    assert set(needed("tpinit", EXTRAS)) - {"tpinit"} - pinned == set()


def test_the_pins_are_exact_and_sorted():
    names = [pin.name for pin in pins()]
    assert names == sorted(set(names))
    assert all(re.fullmatch(r"==[^*+]+", str(pin.specifier)) for pin in pins())


def test_the_pins_are_what_these_tests_run_with():
    present = {canonicalize_name(one.name): one.version for one in importlib.metadata.distributions()}
    here = [pin for pin in pins() if pin.name in present and (pin.marker is None or pin.marker.evaluate())]
    wrong = [f"{pin} but {present[pin.name]}" for pin in here if not pin.specifier.contains(present[pin.name])]
    assert wrong == []


def test_the_base_install_needs_nothing():
    assert [text for text in importlib.metadata.requires("tpinit") or [] if "extra ==" not in text] == []


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text) == 11358  # of the text as apache.org has it


def test_the_hooks_parse_and_need_no_network():
    path = ROOT / ".pre-commit-config.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [repo["repo"] for repo in config["repos"]] == ["local"]


def test_the_workflow_does_what_ci_does():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert "bash .ci/run" in [step.get("run") for step in workflow["jobs"]["ci"]["steps"]]


def test_every_portion_says_that_it_is_typed():
    roots = [ROOT / root / "tpinit" for root in ("spec", "reference", "runtime", "proofs", "tests")]
    portions = [folder for root in roots for folder in root.iterdir() if folder.is_dir() and folder.name[0] != "_"]
    assert len(portions) == 8
    assert [folder.name for folder in portions if not (folder / "py.typed").is_file()] == []


def test_the_namespace_has_no_owner():
    assert list(ROOT.glob("*/tpinit/__init__.py")) == []
