"""One word, one meaning: public classes have names of their own, and the glossary names modules that exist."""

import ast
import collections
import re

import pytest

from support.paths import ROOT, TESTS

GLOSSARY = ROOT / "docs" / "glossary.md"
# Test modules may name the small models and fakes of their own cases as they like.
SOURCES = (
    *(ROOT / name for name in ("spec", "reference", "runtime", "proofs", "docs")),
    *(TESTS / name for name in ("tpinit", "studies", "families", "benchmarks", "support")),
)
# The names that several modules may give to a class, each with the reason.
ALLOWED = {
    "Mpu": "an object with DeepSpeed's interface: reproductions and tests pass their own, as a user does",
}


def modules(folders=SOURCES):
    """Return the syntax tree of every module, by its path below the root."""
    files = (file for folder in folders for file in sorted(folder.rglob("*.py")))
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def classes(tree):
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    return [name for name in names if not name.startswith("_")]


def duplicates(trees):
    """Return the public class names that more than one module defines, each with these modules."""
    places = collections.defaultdict(list)
    for path, tree in trees.items():
        for name in classes(tree):
            places[name].append(path)
    return {name: paths for name, paths in places.items() if len(paths) > 1}


def terms(page):
    """Return the rows of the page's tables: the term and its module."""
    rows = re.findall(r"^\| (?!term |---)(.+?) \| .+ \| `(tpinit\.[\w.]+)` \|$", page, re.M)
    assert len(rows) == len([line for line in page.splitlines() if line.startswith("| ")]) - page.count("| term |")
    return rows


def module_file(name):
    """Return the file of a module of tpinit, or None. Nothing is imported."""
    path = name.replace(".", "/")
    found = [
        ROOT / root / (path + end)
        for root in ("spec", "reference", "runtime", "proofs", "tests")
        for end in (".py", "/__init__.py")
        if (ROOT / root / (path + end)).is_file()
    ]
    return found[0] if found else None


def misplaced(page):
    """Return the rows of a glossary whose module is missing or does not define the class in the first column."""
    wrong = []
    for term, module in terms(page):
        file = module_file(module)
        named = re.findall(r"`([A-Z]\w+)`", term)
        if file is None or not {*named} <= {*classes(ast.parse(file.read_text(encoding="utf-8")))}:
            wrong.append((term, module))
    return wrong


def test_a_public_class_has_a_name_of_its_own():
    found = {name: paths for name, paths in duplicates(modules()).items() if name not in ALLOWED}
    assert found == {}


def test_every_allowed_duplicate_is_one():
    assert ALLOWED.keys() <= duplicates(modules()).keys()


def test_a_second_class_of_one_name_is_found():
    trees = {"a.py": ast.parse("class Verdict: ..."), "b.py": ast.parse("class Verdict: ...\nclass _Local: ...")}
    assert duplicates(trees) == {"Verdict": ["a.py", "b.py"]}


def test_the_glossary_names_modules_and_classes_that_exist():
    page = GLOSSARY.read_text(encoding="utf-8")
    assert len(terms(page)) > 50
    assert misplaced(page) == []


@pytest.mark.parametrize(
    "row",
    [
        "| `Outcome` | what initialize does | `tpinit.spec.table` |",
        "| shard | a part of a parameter | `tpinit.runtime.shard` |",
    ],
)
def test_a_missing_module_or_class_is_found(row):
    assert len(misplaced(row)) == 1


def test_a_term_is_defined_once():
    names = [term for term, _ in terms(GLOSSARY.read_text(encoding="utf-8"))]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_glossary_is_linked(page):
    assert "docs/glossary.md" in (ROOT / page).read_text(encoding="utf-8")
