"""`import tpinit.reference` is light, and so is all of it that runs without an error."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tpinit.reference

HEAVY = {"torch", "z3", "hjson", "jsonschema", "numpy", "hypothesis", "argparse", "difflib", "unittest"}
MODULES = (
    *("config", "errors", "explain", "fields", "groups", "mpu", "objects", "resolver", "source", "spellings", "top"),
    "values",
)
BEST_OF = 5


def loaded(code: str) -> set[str]:
    report = f"import sys\n{code}\nimport json\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(run.stdout))


def seconds(code: str) -> float:
    """Return the best time of several interpreters for one statement."""
    timed = f"import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"
    runs = (
        subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, timeout=60, check=True)
        for _ in range(BEST_OF)
    )
    return min(float(run.stdout) for run in runs)


def test_the_package_alone_loads_nothing_but_itself():
    new = loaded("import tpinit.reference") - loaded("pass")
    assert {name for name in new if not name.startswith("tpinit")} <= {"__future__"}
    assert {name for name in new if name.startswith("tpinit.reference.")} == set()


def test_no_module_loads_anything_heavy():
    assert not HEAVY & loaded("; ".join(f"import tpinit.reference.{module}" for module in MODULES))


def test_deciding_on_a_config_loads_nothing_heavy():
    code = (
        "from tpinit.reference import Resolver, CallArgs\n"
        "from tpinit.reference.explain import explain, to_json\n"
        "d = Resolver(4).resolve(call=CallArgs(2, 'bf16'), config={'tensor_parallel': {'autotp_size': 2}})\n"
        "assert explain(d) and to_json(d)['row'] == 7"
    )
    assert not HEAVY & loaded(code)


def test_the_check_for_heavy_modules_can_fail():
    assert "argparse" in HEAVY & loaded("import argparse")


def test_importing_takes_less_than_the_50_ms_that_the_issue_allows():
    package = seconds("import tpinit.reference")
    everything = seconds("from tpinit.reference import Resolver, describe")
    print(f"tpinit.reference {1000 * package:.1f} ms, with the resolver and all readers {1000 * everything:.1f} ms")
    assert package < 0.05


def test_every_public_name_is_there_and_listed():
    for name in tpinit.reference.__all__:
        assert getattr(tpinit.reference, name).__name__ == name
        assert name in dir(tpinit.reference)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = tpinit.reference.no_such_name
    # The module and its function share a name: the package has the module, whichever was imported first.
    from tpinit.reference import explain

    assert callable(explain.explain)
