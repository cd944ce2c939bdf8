"""Who may import whom: the contracts hold, and each of them rejects what it is there to reject."""

import shutil
import site
import subprocess
import sys

import pytest

from support.paths import ROOT

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOTS = ("spec", "reference", "runtime", "proofs", "tests")

VOCABULARY = "spec/tpinit/spec/vocabulary.py"
TABLE = "spec/tpinit/spec/table.py"
PROSE = "spec/tpinit/spec/prose.py"
MODEL = "spec/tpinit/spec/model.py"
MEANING = "spec/tpinit/spec/meaning.py"
RESOLVER = "reference/tpinit/reference/resolver.py"
PLAN = "reference/tpinit/cli/plan.py"
PLAN_PAGE = "reference/tpinit/cli/plan_page.py"
STEP = "reference/tpinit/step/verdict.py"
RUNTIME = "runtime/tpinit/runtime/__init__.py"
GROUPS = "runtime/tpinit/runtime/groups/topology.py"
PARALLEL = "runtime/tpinit/runtime/parallel/linear.py"
RECORDING = "runtime/tpinit/runtime/recording/ranks.py"
SCHEMA = "runtime/tpinit/runtime/planning/schema.py"
TRACE = "runtime/tpinit/runtime/planning/analysis/trace.py"
TABLES = "proofs/tpinit/decision_tables/format.py"
PROOFS = "proofs/tpinit/proofs/__init__.py"
CONFORMANCE = "tests/tpinit/conformance/__init__.py"
ORACLE = "tests/tpinit/conformance/oracle.py"

# (the contract that must reject it, the file, the import that is added at its end)
FORBIDDEN = [
    ("vocabulary", VOCABULARY, "import tpinit.spec.table"),
    ("vocabulary", VOCABULARY, "from tpinit.reference import resolver"),
    ("formulations", TABLE, "from tpinit.spec import prose"),
    ("formulations", PROSE, "from tpinit.spec.table import ROWS"),
    ("formulations", PROSE, "def late():\n    import tpinit.spec.table"),
    ("spec", TABLE, "from tpinit.reference.resolver import resolve"),
    ("spec", MODEL, "import torch"),
    ("spec", MODEL, "import tpinit.runtime"),
    ("second-merge", MEANING, "from tpinit.spec.model import Model"),
    ("second-merge", MODEL, "def late():\n    from tpinit.spec import meaning"),
    ("second-merge-alone", MEANING, "from tpinit.spec.prose import RULES"),
    ("second-merge-alone", MEANING, "import tpinit.spec.evidence"),
    ("spec-stdlib", TABLE, "import z3"),
    ("spec-stdlib", PROSE, "from tpinit.spec import model"),
    ("spec-stdlib", TABLE, "from tpinit.spec import symbols"),
    ("reference", RESOLVER, "from tpinit.spec.table import ROWS"),
    ("reference", RESOLVER, "from tpinit.spec import prose"),
    ("reference", RESOLVER, "import tpinit.spec.model"),
    ("reference", RESOLVER, "def late():\n    import torch"),
    ("reference", RESOLVER, "import z3"),
    ("reference", RESOLVER, "import tpinit.runtime"),
    ("step", STEP, "from tpinit.spec import vocabulary"),
    ("step", STEP, "def late():\n    import torch"),
    ("step", STEP, "import tpinit.runtime"),
    ("step-users", RESOLVER, "from tpinit.step import graph"),
    ("runtime", RUNTIME, "import tpinit.proofs"),
    ("runtime", RUNTIME, "def late():\n    import tpinit.conformance"),
    ("runtime", RUNTIME, "from tpinit.spec import table"),
    ("rooms", GROUPS, "import tpinit.runtime.parallel.linear"),
    ("rooms", RECORDING, "def late():\n    from tpinit.runtime.init.api import initialize"),
    ("rooms", PARALLEL, "def late():\n    from tpinit.runtime.planning import schema"),
    ("planning", SCHEMA, "import tpinit.runtime.planning.analysis.trace"),
    ("planning", TRACE, "def late():\n    import tpinit.runtime.planning.planner"),
    ("decision-tables", TABLES, "import tpinit.proofs.claims"),
    ("commands", PROOFS, "import tpinit.cli.main"),
    ("command-modules", PLAN_PAGE, "def late():\n    from tpinit.cli.plan import run"),
    ("command-modules", PLAN, "from tpinit.cli.resolve import run"),
    ("oracle", ORACLE, "from tpinit.reference.resolver import in_scope"),
    ("oracle", ORACLE, "import tpinit.spec.prose"),
    ("torch-free", PROOFS, "import torch"),
    ("torch-free", CONFORMANCE, "def late():\n    import torch"),
    ("commands", CONFORMANCE, "from tpinit.cli import main"),
]

# Without the site module, no .pth file adds the source roots of the installed tree to those of the copy.
LINT = """
import sys
sys.path[:0] = sys.argv[1:6]
sys.path.append(sys.argv[6])
from importlinter.cli import lint_imports_command
lint_imports_command(sys.argv[7:], prog_name="lint-imports")
"""


def contracts():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [contract["id"] for contract in config["tool"]["importlinter"]["contracts"]]


@pytest.fixture
def tree(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for root in ROOTS:
        shutil.copytree(
            ROOT / root / "tpinit", tmp_path / root / "tpinit", ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


def lint(tree, *options):
    roots = [str(tree / root) for root in ROOTS]
    return subprocess.run(
        [sys.executable, "-S", "-c", LINT, *roots, site.getsitepackages()[0], "--no-logo", "--no-cache", *options],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_contract_keeps_the_tree(tree):
    result = lint(tree)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"Contracts: {len(contracts())} kept, 0 broken." in result.stdout


def test_every_contract_has_a_negative_control():
    assert {contract for contract, _, _ in FORBIDDEN} == set(contracts())


@pytest.mark.parametrize(("contract", "path", "statement"), FORBIDDEN)
def test_a_forbidden_import_is_rejected(tree, contract, path, statement):
    with (tree / path).open("a", encoding="utf-8") as file:
        file.write(f"\n\n{statement}\n")
    result = lint(tree, "--contract", contract)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Contracts: 0 kept, 1 broken." in result.stdout
