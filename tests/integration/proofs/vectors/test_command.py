"""`tpinit vectors`: counting, listing, checking, writing, and its errors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tpinit.cli import main as cli
from tpinit.cli import vectors as command
from tpinit.conformance.vectors import (
    load,
    manifest,
)
from tpinit.proofs.vectors import generating
from tpinit.proofs.vectors.generating import OraclesDisagree

VECTORS = load()
MANIFEST = manifest()


def test_the_command_counts_and_lists(capsys):
    assert cli.main(["vectors"]) == 0
    said = capsys.readouterr().out
    assert f"{len(VECTORS)} vectors\n" in said
    assert MANIFEST["spec"]["sha256"] in said
    assert cli.main(["vectors", "--smoke"]) == 0
    assert "19 vectors in the smoke subset\n" in capsys.readouterr().out
    assert cli.main(["vectors", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [v.id for v in VECTORS]
    assert cli.main(["vectors", "--list", "--smoke"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 19


def test_the_command_checks(generated, monkeypatch, capsys):
    monkeypatch.setattr(generating, "generate", lambda: generated)
    assert cli.main(["vectors", "--check"]) == 0
    assert f"all {len(VECTORS)} vectors are what the spec gives" in capsys.readouterr().out
    monkeypatch.setattr(generating, "committed", dict)
    assert cli.main(["vectors", "--check"]) == 1
    said = capsys.readouterr().out
    assert f"{VECTORS[0].id}: is not committed" in said
    assert f"... and {len(VECTORS) + 2 - command.MAX_SHOWN} more" in said


def test_the_command_writes(generated, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(generating, "generate", lambda: generated)
    monkeypatch.setattr(command, "_folder", lambda: tmp_path)
    assert cli.main(["vectors", "--write"]) == 0
    assert str(tmp_path) in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == set(generating.FILES)
    monkeypatch.setattr(command, "_folder", lambda: tmp_path / "nowhere")
    assert cli.main(["vectors", "--write"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_oracles_that_disagree_end_with_1_and_write_nothing(monkeypatch, capsys):
    def refuse():
        raise OraclesDisagree("the oracles disagree on this")

    monkeypatch.setattr(generating, "generate", refuse)
    monkeypatch.setattr(generating, "write", lambda *_: pytest.fail("it wrote"))
    assert cli.main(["vectors", "--write"]) == 1
    assert "nothing was written: the oracles disagree on this" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"), [(("--check", "--write"), "not allowed with"), (("--what",), "unrecognized")]
)
def test_wrong_options_are_a_usage_error(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["vectors", *arguments])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_subset_cannot_be_regenerated(capsys):
    assert cli.main(["vectors", "--check", "--smoke"]) == 2
    assert "--smoke is for counting and listing" in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "z3" else SimpleNamespace())
    assert cli.main(["vectors", "--check"]) == 2
    assert "'tpinit vectors --check' needs z3, not installed here" in capsys.readouterr().err
    assert cli.main(["vectors", "--list", "--smoke"]) == 0
