"""Every Python file is short, has short functions and a name that says what it holds; no test changes sys.path."""

import ast
import subprocess

import pytest

from support.paths import ROOT

MAX_FILE, MAX_FUNCTION = 400, 60  # lines


def files():
    """The Python files that git tracks, or will: relative paths in order."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(path for path in {*listed} if (ROOT / path).is_file())


def problems(path, text):
    """What is wrong with a file: its name, its length, and the functions that are too long, decorators included."""
    found = []
    if path.removesuffix(".py").endswith("_more"):
        found.append(f"{path}: the name says `more`, and not what is in it")
    lines = len(text.splitlines())
    if lines > MAX_FILE:
        found.append(f"{path}: {lines} lines")
    tree = ast.parse(text)
    if path.startswith("tests/") and any(changes_the_path(node) for node in ast.walk(tree)):
        found.append(f"{path}: sys.path is changed; pyproject.toml has what tests import")
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            length = node.end_lineno - first + 1
            if length > MAX_FUNCTION:
                found.append(f"{path}: {node.name} has {length} lines")
    return found


def changes_the_path(node):
    """Whether a node calls a method of `sys.path`, such as insert."""
    return isinstance(node, ast.Call) and ast.unparse(node.func).startswith("sys.path.")


def test_no_file_breaks_a_rule():
    assert [problem for path in files() for problem in problems(path, (ROOT / path).read_text(encoding="utf-8"))] == []


def test_all_rooms_are_looked_at():
    rooms = (
        "spec",
        "reference",
        "runtime",
        "proofs",
        "tests/tpinit",
        "tests/unit",
        "tests/distributed",
        "tests/support",
    )
    assert [room for room in rooms if not any(path.startswith(f"{room}/") for path in files())] == []


def function(lines, head="def f():"):
    return "\n".join([head, *["    pass"] * (lines - 1)]) + "\n"


@pytest.mark.parametrize(
    ("path", "text", "problem"),
    [
        ("a.py", "x = 1\n" * 401, "a.py: 401 lines"),
        ("a.py", function(61), "a.py: f has 61 lines"),
        ("a.py", function(61, "async def f():"), "a.py: f has 61 lines"),
        ("a.py", "@cache\n" + function(60), "a.py: f has 61 lines"),
        ("a.py", "class A:\n" + "".join(f"    {line}\n" for line in function(61).splitlines()), "a.py: f has 61 lines"),
        (
            "tests/a.py",
            "import sys\nsys.path.insert(0, 'b')\n",
            "tests/a.py: sys.path is changed; pyproject.toml has what tests import",
        ),
        ("test_a_more.py", "", "test_a_more.py: the name says `more`, and not what is in it"),
    ],
    ids=["file", "function", "coroutine", "decorator", "method", "path", "name"],
)
def test_a_file_that_breaks_a_rule_is_detected(path, text, problem):
    assert problems(path, text) == [problem]


def test_a_file_at_the_limits_breaks_no_rule():
    text = function(60) + function(60, "async def g():") + "x = 1\n" * 280
    assert len(text.splitlines()) == MAX_FILE
    assert problems("more.py", text) == []
