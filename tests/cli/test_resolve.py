"""`tpinit resolve`: every row from the command line, and every malformed question refused."""

import base64
import json

import pytest

SECTION = '{"tensor_parallel": {"autotp_size": 2}}'
CALL = ("--tp-size", "2", "--dtype", "bf16")
MPU = ("--mpu", "0,2;1,3")
GROUP = ("--tp-group", "0,1;2,3")


def decide(tpinit, *arguments, **options):
    result = tpinit("resolve", *arguments, "--json", **options)
    assert result.returncode in (0, 1), result.stderr.decode()
    assert result.stderr == b""
    decision = json.loads(result.stdout)
    assert (result.returncode == 1) == bool(decision["violations"]) == (decision["outcome"] == "error")
    return decision


def codes(decision):
    return [violation["code"] for violation in decision["violations"]]


@pytest.mark.parametrize(
    ("row", "call", "section", "mpu", "outcome", "source"),
    [
        (1, (), False, (), "error", None),
        (2, (), False, MPU, "no_autotp", None),
        (3, (), True, (), "init_from_config", "created"),
        (4, (), True, MPU, "init_from_config", "mpu.tp_group"),
        (5, CALL, False, (), "error", None),
        (6, CALL, False, MPU, "init_from_call", "mpu.tp_group"),
        (7, CALL, True, (), "init_from_config", "created"),
        (8, CALL, True, MPU, "init_from_config", "mpu.tp_group"),
        (9, (*CALL, *GROUP), False, (), "init_from_call", "call.tp_group"),
        (10, (*CALL, *GROUP), False, MPU, "error", None),
        (11, (*CALL, *GROUP), True, (), "init_from_config", "call.tp_group"),
        (12, (*CALL, *GROUP), True, MPU, "error", None),
    ],
)
def test_every_row(tpinit, row, call, section, mpu, outcome, source):
    config = (tpinit.write(SECTION),) if section else ()
    decision = decide(tpinit, *config, *call, *mpu, "--world", "4")
    assert (decision["row"], decision["outcome"], decision["tp_group"]["source"]) == (row, outcome, source)


def test_the_shape_of_the_object(tpinit):
    decision = decide(tpinit, tpinit.write(SECTION), *CALL, *MPU)
    assert decision["row"] == 8
    assert decision["tp_size"] == {"value": 2, "source": "config.autotp_size"}
    assert decision["dtype"] == {"value": "bf16", "source": "call.dtype"}
    assert decision["tp_group"]["source"] == "mpu.tp_group"
    assert decision["violations"] == []


def test_violations_have_code_message_and_fix(tpinit):
    decision = decide(
        tpinit,
        tpinit.write('{"fp16": {"enabled": true}, "tensor_parallel": {"autotp_size": 3}}'),
        *CALL,
        "--world",
        "4",
    )
    assert codes(decision) == ["SIZE_MISMATCH", "DTYPE_MISMATCH", "SIZE_NOT_DIVIDING_WORLD"]
    for violation in decision["violations"]:
        assert set(violation) >= {"code", "message", "fix"}
        assert violation["message"]
        assert violation["fix"]


def test_words(tpinit):
    result = tpinit("resolve", tpinit.write(SECTION), *CALL, *MPU)
    assert result.returncode == 0
    for word in ("row 8", "tensor_parallel.autotp_size", "dtype in tp_model_init", "ranks 0, 2"):
        assert word in result.stdout.decode().lower()


def test_violations_in_words_go_to_stdout_and_exit_with_1(tpinit):
    result = tpinit("resolve", *CALL)
    assert (result.returncode, result.stderr) == (1, b"")
    assert b"NO_GROUP_SOURCE" in result.stdout


def test_the_script_and_the_module_are_one_command(tpinit):
    path = tpinit.write(SECTION)
    one = tpinit("resolve", path, "--world", "4", "--json")
    other = tpinit("resolve", path, "--world", "4", "--json", script=True)
    assert (one.returncode, one.stdout) == (other.returncode, other.stdout) == (0, one.stdout)


@pytest.mark.parametrize("bad", [(), ("--world", "2", "--mpu", "a")])
def test_json_prints_one_object_or_nothing(tpinit, bad):
    result = tpinit("resolve", *bad, "--json")
    assert result.stdout == b"" if bad else json.loads(result.stdout)["row"] == 1


# --- groups ----------------------------------------------------------------------------------------


def test_the_group_that_counts_is_the_one_of_the_rank(tpinit):
    first = decide(tpinit, *CALL, *MPU)
    other = decide(tpinit, *CALL, *MPU, "--rank", "3")
    assert first["tp_group"]["value"] != other["tp_group"]["value"]


def test_one_list_in_two_options_is_one_group(tpinit):
    path = tpinit.write(SECTION)
    assert codes(decide(tpinit, path, *CALL, "--mpu", "0,1;2,3", "--mesh", " 3,2 ; 1,0 ")) == []


def test_two_lists_are_two_groups(tpinit, refused):
    config = tpinit.write(SECTION)
    decision = decide(tpinit, config, "--mpu", "0,1;2,3", "--mesh", "0,2;1,3")
    assert codes(decision) == ["GROUP_IDENTITY_MISMATCH"]


def test_lists_that_differ_for_another_rank_only_are_not_taken_for_one(tpinit, refused):
    question = (tpinit.write(SECTION), "--mpu", "0,1;2,3;4,5", "--mesh", "0,1;2,4;3,5")
    refused(tpinit("resolve", *question), "--mesh", "rank 0 has the same group here as in --mpu", "--rank 2")
    assert codes(decide(tpinit, *question, "--rank", "2")) == ["GROUP_IDENTITY_MISMATCH"]


def test_a_group_of_another_size(tpinit):
    assert codes(decide(tpinit, "--tp-size", "4", "--dtype", "fp32", *MPU)) == ["GROUP_SIZE_MISMATCH"]


def test_a_mesh_is_a_group_source_of_a_section_only(tpinit):
    assert decide(tpinit, tpinit.write(SECTION), "--mesh", "0,1;2,3")["tp_group"]["source"] == "mesh.tp_group"
    assert codes(decide(tpinit, *CALL, "--mesh", "0,1;2,3")) == ["NO_GROUP_SOURCE"]


# --- the world -------------------------------------------------------------------------------------


def test_the_world_follows_from_the_groups(tpinit):
    assert decide(tpinit, tpinit.write(SECTION), *MPU)["row"] == 4


def test_a_world_that_is_not_known_is_not_made_up(tpinit):
    assert decide(tpinit)["world_size"] is None
    assert decide(tpinit, *MPU)["world_size"] == 4


def test_the_world_of_the_environment_counts_where_nothing_else_tells(tpinit, refused):
    path = tpinit.write(SECTION)
    assert codes(decide(tpinit, path, WORLD_SIZE="3")) == ["SIZE_NOT_DIVIDING_WORLD"]
    assert codes(decide(tpinit, path, "--world", "4", WORLD_SIZE="3")) == []
    assert codes(decide(tpinit, path, *MPU, WORLD_SIZE="3")) == []
    refused(tpinit("resolve", path, WORLD_SIZE="many"), "$WORLD_SIZE", "many")


def test_a_world_that_matters_is_asked_for(tpinit, refused):
    refused(tpinit("resolve", tpinit.write(SECTION)), "--world", "is missing")


def test_a_world_that_does_not_matter_is_not_asked_for(tpinit):
    assert codes(decide(tpinit)) == ["NO_TP_INTENT"]
    assert codes(decide(tpinit, *CALL)) == ["NO_GROUP_SOURCE"]
    assert codes(decide(tpinit, tpinit.write("{}"))) == ["NO_TP_INTENT"]


def test_huge_numbers_are_numbers(tpinit):
    size = "1" + "0" * 4000
    decision = decide(tpinit, tpinit.write(f'{{"tensor_parallel": {{"autotp_size": {size}}}}}'), "--world", size + "00")
    assert (decision["row"], decision["violations"]) == (3, [])


# --- configs ---------------------------------------------------------------------------------------


def test_a_config_from_stdin(tpinit):
    assert decide(tpinit, "-", "--world", "4", stdin=SECTION)["row"] == 3
    assert decide(tpinit, "-", "--world", "4", stdin="# HJSON\ntensor_parallel: {autotp_size: 2}\n")["row"] == 3


def test_a_config_as_base64(tpinit):
    assert decide(tpinit, base64.b64encode(SECTION.encode()).decode(), "--world", "4")["row"] == 3


def test_a_section_switched_off_is_said_so(tpinit):
    path = tpinit.write('{"tensor_parallel": {"autotp_size": 0}}')
    assert codes(decide(tpinit, path)) == ["NO_TP_INTENT"]
    assert "autotp_size" in tpinit("resolve", path).stdout.decode()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "empty"),
        ("{", "JSON"),
        ("[]", "object"),
        ('{"tensor_parallel": {"autotp_size": 2, "autotp_size": 4}}', "more than once"),
        ('{"tensor_parallel": {"autotp_sise": 2}}', "autotp_size"),
        ('{"tensor_parallel": {"autotp_size": 2.0}}', "tensor_parallel.autotp_size"),
        ('{"tensor_parallel": {"autotp_size": true}}', "tensor_parallel.autotp_size"),
        ('{"tensor_parallel": {"autotp_size": NaN}}', "finite"),
        ('{"tensor_parallel": {"größe": 2}}', "tensor_parallel"),
        (b"\xff\xfe{}", "UTF-8"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nests"),
        ('{"bf16": {"enabled": true}, "fp16": {"enabled": true}}', "bf16"),
        ('{"tensor_parallel": {"autotp_size": 1%s}}' % ("0" * 5000), "digits"),
    ],
)
def test_malformed_configs(tpinit, refused, content, word):
    refused(tpinit("resolve", tpinit.write(content), "--world", "4"), word, "fix:")
    refused(tpinit("resolve", "-", "--world", "4", stdin=content), word, "fix:")


@pytest.mark.parametrize("path", ["missing.json", ".", "größe.json", "x" * 5000, "a\nb.json", "", "{}"])
def test_configs_that_are_not_there(tpinit, refused, path):
    refused(tpinit("resolve", path, "--world", "4"), "fix:")


def test_all_problems_of_a_config_come_at_once(tpinit, refused):
    path = tpinit.write('{"tensor_parallel": {"autotp_size": "2", "dtype": "int8", "tp": {"mpu": 1}}}')
    refused(tpinit("resolve", path, "--world", "4"), "3 problems", "autotp_size", "dtype", "tp.mpu")


# --- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--mpu", "--mesh"])
@pytest.mark.parametrize(
    ("groups", "word"),
    [
        ("0,2;2,3", "rank 2 is listed twice"),
        ("0,0;1,2", "rank 0 is listed twice"),
        ("a,b", '"a" is not a rank'),
        ("", "no group is given"),
        (" ", "no group is given"),
        (";", "a group is empty"),
        ("0,1;", "a group is empty"),
        ("0,,1", '"" is not a rank'),
        ("0,1;2", "all groups of a world have one size"),
        ("0.5,1", "is not a rank"),
        ("0,-1", "is not a rank"),
        ("\u0660,\u0661", "is not a rank"),
        ("0,1;2,9", "rank 9 is outside a world of 4"),
        ("0,1", "rank 2 is in no group"),
        ("0," + "9" * 5000, "is not a rank"),
        ("0," + "9" * 4000, "outside a world of 4"),
        ("0;1;2;3;" * 3000 + "4", "listed twice"),
    ],
)
def test_malformed_groups(tpinit, refused, option, groups, word):
    error = refused(tpinit("resolve", option, groups, "--world", "4"), word, option)
    assert "as in '0,1;2,3'" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--world", "0"), ("--world", "at least 1")),
        (("--world", "-4"), ("--world", "at least 1")),
        (("--world", "two"), ("--world", "an integer")),
        (("--world", "1_000"), ("--world", "an integer")),
        (("--world", "2.0"), ("--world", "an integer")),
        (("--world", "9" * 5000), ("--world", "an integer")),
        (("--world", ""), ("--world", "an integer")),
        (("--rank", "-1"), ("--rank", "at least 0")),
        (("--world", "4", "--rank", "4"), ("--rank", "outside a world of 4")),
        (("--tp-size", "two", "--dtype", "bf16"), ("--tp-size", "an integer")),
        (("--tp-size", "", "--dtype", "bf16"), ("--tp-size", "an integer")),
        (("--dtype", "bf16"), ("--dtype", "add --tp-size")),
        (("--tp-group", "0,1"), ("--tp-group", "add --tp-size")),
        (("--tp-size", "2"), ("--dtype", "is missing")),
        (("--tp-size", "2", "--dtype", "int8"), ("int8", "bf16")),
        (("--tp-size", "2", "--dtype", "bf61"), ("bf61", "bf16")),
        (("--tp-size", "2", "--dtype", "ünïcode"), ("dtype",)),
        (("--tp-size", "2", "--dtype", "auto"), ("dtype",)),
        (("--mpu", "0,1", "--mesh", "0,1;2,3"), ("--mpu", "rank 2 is in no group")),
    ],
)
def test_malformed_options(tpinit, refused, arguments, words):
    refused(tpinit("resolve", *arguments), *words)


@pytest.mark.parametrize("size", ["0", "-1"])
def test_a_size_below_1_is_a_violation_and_not_a_usage_error(tpinit, size):
    assert "SIZE_INVALID" in codes(decide(tpinit, "--tp-size", size, "--dtype", "bf16", *MPU))


def test_all_problems_of_the_options_come_at_once(tpinit, refused):
    refused(
        tpinit("resolve", "--world", "0", "--dtype", "bf16", "--mpu", "a", "--mesh", "0,0"),
        "4 problems",
        "--world",
        "--dtype",
        "--mpu",
        "--mesh",
    )


def test_a_terminal_without_unicode_is_no_reason_to_fail(tpinit):
    result = tpinit("resolve", *CALL, PYTHONUTF8="0", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert result.returncode == 1
    assert result.stderr == b""


def test_stdin_leaves_nothing_behind(tpinit, tmp_path):
    decide(tpinit, "-", "--world", "4", stdin=SECTION, TMPDIR=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
