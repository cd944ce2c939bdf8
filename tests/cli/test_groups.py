"""The mpu that stands for the groups of a command line has every method that DeepSpeed calls."""

import pytest
from tpinit.cli.groups import RankMpu, parse_groups

METHODS = [f"get_{side}_parallel_{what}" for side in ("model", "data") for what in ("rank", "group", "world_size")]


def mpu(rank, text="0,2;1,3;4,5"):
    groups = parse_groups("--mpu", text)
    return RankMpu(rank, groups.of(rank), groups.across(rank))


def methods_of(kind):
    return sorted(name for name in dir(kind) if name.startswith("get_"))


def test_the_mpu_has_deepspeeds_six_methods_and_no_other():
    assert methods_of(RankMpu) == sorted(METHODS)


def test_a_method_of_another_name_is_noticed():
    names = {name.replace("_rank", "show"): None for name in METHODS}
    assert methods_of(type("Misnamed", (), names)) != sorted(METHODS)


@pytest.mark.parametrize(
    ("rank", "answers"),
    [
        (0, (0, (0, 2), 2, 0, (0, 1, 4), 3)),
        (3, (1, (1, 3), 2, 1, (2, 3, 5), 3)),
        (4, (0, (4, 5), 2, 2, (0, 1, 4), 3)),
    ],
)
def test_each_method_answers_for_its_rank(rank, answers):
    assert tuple(getattr(mpu(rank), name)() for name in METHODS) == answers
