"""What the documents show is what the command does."""

import json
import re
import shutil
import subprocess
import sys

from tpinit.cli.main import COMMANDS
from tpinit.reference.fields import SECTION, TP, all_names

from support.paths import ROOT

EXAMPLES = ROOT / "examples"


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_readme_shows_the_real_answer(tpinit):
    (shown,) = re.findall(
        r"\$ tpinit resolve examples/llama_tp2_bf16.json --world 4\n(.*?)```", read("README.md"), re.S
    )
    assert tpinit("resolve", EXAMPLES / "llama_tp2_bf16.json", "--world", "4").stdout.decode() == shown


def test_the_readme_s_first_program_runs(tmp_path):
    program = re.findall(r"```python\n(.*?)```", read("README.md"), re.S)[0]
    shutil.copy(EXAMPLES / "llama_tp2_bf16.json", tmp_path / "ds_config.json")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("7 Outcome.INIT_FROM_CONFIG")


def test_the_examples_do_what_their_page_says(tpinit):
    good = json.loads(tpinit("resolve", EXAMPLES / "llama_tp2_bf16.json", "--world", "4", "--json").stdout)
    assert (good["row"], good["tp_size"]["value"], good["dtype"]["value"]) == (3, 2, "bf16")
    question = ("--tp-size", "2", "--dtype", "bf16", "--mpu", "0,2;1,3", "--world", "4")
    assert tpinit("resolve", EXAMPLES / "llama_tp2_bf16.json", *question).returncode == 0
    bad = tpinit("resolve", EXAMPLES / "qwen_conflicting.json", "--world", "6", "--json")
    assert bad.returncode == 1
    codes = [violation["code"] for violation in json.loads(bad.stdout)["violations"]]
    assert codes == ["SIZE_MISMATCH", "DTYPE_MISMATCH", "SIZE_NOT_DIVIDING_WORLD"]


def test_the_manual_has_a_section_for_every_command():
    assert re.findall(r"^## tpinit (\S+)$", read("docs/cli.md"), re.M) == list(COMMANDS)


def test_the_manual_names_every_key_of_the_answer(tpinit):
    table = read("docs/cli.md").partition("it is one object:")[2].partition("An integer of more")[0]
    named = re.findall(
        r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    )
    assert sorted(named) == sorted(json.loads(tpinit("resolve", "--json").stdout))


def test_the_manual_names_every_key_of_the_section():
    words = set(re.findall(r"\w+", read("docs/config.md")))
    assert {name for field in (*SECTION, *TP) for name in all_names(field)} - words == set()
