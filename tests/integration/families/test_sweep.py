"""The sweep over all models calls wrong what is wrong, and refused what is refused; nothing is swept here."""

import copy
import math

import pytest
import torch

from families import cases, judging, page, ranks, sweep


def ended(**numbers):
    exact = {"loss": 1e-7, "gradient": 1e-6, "norm": 1e-7, "weight": 1e-8, "local_elements": 52, "elements": 100}
    return ranks.RankEnd(exact | {"noise": 0.0, "source": "structure", "where": {}} | numbers)


def raised(*kinds, text="it can't be"):
    return ranks.RankEnd(kinds=kinds, text=text, trace="Traceback")


def never():
    raise AssertionError("there is no doubt that fp64 could lift")


def ours(*ends, double=never):
    return judging.judge_ours(ends, double)


def peer(*ends):
    return judging.judge_peer(ends)


def test_what_agrees_is_exact():
    outcome = ours(ended(), ended(local_elements=53))
    assert (outcome.verdict.value, outcome.share, outcome.source) == ("exact", 0.53, "structure")
    assert peer(ended(), ended()).verdict.value == "exact"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("off", [2e-4, 1.0, math.inf, math.nan])
@pytest.mark.parametrize("what", ["loss", "gradient", "norm", "weight"])
def test_one_number_that_is_off_on_one_rank_is_wrong(what, off, rank):
    ends = [ended(), ended()]
    ends[rank] = ended(**{what: off})
    outcome = ours(*ends)
    assert outcome.verdict.value == "WRONG"
    assert what in outcome.words
    assert sweep.failed(outcome)
    if what in {"loss", "gradient"}:
        assert peer(*ends).verdict.value == "WRONG"


@pytest.mark.parametrize(
    ("double", "verdict"), [(1e-13, "exact"), (1e-7, "WRONG"), (1e-5, "WRONG"), (5e-5, "WRONG"), (math.nan, "WRONG")]
)
def test_a_doubt_is_lifted_only_where_the_difference_shrinks_with_precision(double, verdict):
    tiny = dict.fromkeys(("loss", "norm", "weight"), 1e-14)
    outcome = ours(ended(gradient=5e-5), ended(), double=lambda: [ended(**tiny | {"gradient": double})] * 2)
    assert outcome.verdict.value == verdict


def test_a_doubt_is_not_lifted_by_a_failure():
    assert ours(ended(loss=5e-5), ended(), double=lambda: [raised("KeyError")] * 2).verdict.value == "WRONG"


def test_a_peer_is_granted_ten_times_the_noise_of_the_whole_model_and_no_more():
    assert peer(*[ended(loss=5e-4, noise=1e-4)] * 2).verdict.value == "exact"
    assert peer(*[ended(loss=5e-3, noise=1e-4)] * 2).verdict.value == "WRONG"


TEXT = "this model can't be sharded over 2 ranks:\n  model.a, model.b, model.c: it folds heads\n  model.d: it is odd"


def test_refused_stays_refused_with_the_reason():
    outcome = ours(*[raised("PlanError", "TpinitError", text=TEXT)] * 2)
    assert outcome.verdict.value == "refused"
    assert outcome.words == "model.a and 2 more: it folds heads"
    assert not sweep.failed(outcome)
    assert ours(raised("PlanError"), raised("Stopped")).verdict.value == "refused"
    assert peer(*[raised("PeerRefused", text="ValueError: no")] * 2).words == "ValueError: no"


@pytest.mark.parametrize("other", [None, "KeyError", "Died", "Hung", "EngineError"])
def test_what_only_some_ranks_refuse_is_an_error(other):
    for ends in ([raised("PlanError"), raised(other) if other else ended()], [raised(other)] * 2 if other else []):
        if ends:
            outcome = ours(*ends)
            assert outcome.verdict.value == "error"
            assert sweep.failed(outcome)


def test_a_peer_that_fails_did_so_before_training_in_it_or_not_at_all():
    assert peer(raised("PeerRefused"), raised("Stopped")).verdict.value == "refused"
    assert peer(raised("KeyError"), raised("Stopped")).verdict.value == "error"
    assert peer(*[raised("NotRun")] * 2).verdict.value == "not run"
    assert peer(*[raised("Hung", text="not finished in 9 s")] * 2).words == "Hung: not finished in 9 s"


def test_a_peer_whose_ranks_hold_everything_has_cut_nothing():
    assert peer(*[ended(local_elements=100)] * 2).verdict.value == "nothing cut"


def test_the_second_try_of_a_peer_counts_only_if_it_is_exact():
    better = judging.better
    wrong, exact, failed = peer(ended(loss=1.0)), peer(ended()), peer(raised("KeyError"))
    assert better(wrong, exact) is exact
    assert better(wrong, failed) is wrong


def test_what_is_kept_in_a_file_comes_back():
    outcome = ours(ended(loss=math.nan), ended())
    assert judging.FamilyResult.of(outcome.as_dict()) == outcome


def trained(spoil=None, name="llama"):
    """What `compared` says of a copy of the whole model, of which `spoil` may have broken something."""
    reference = cases.build(name, causal=False)
    model = copy.deepcopy(reference)
    if spoil:
        spoil(dict(model.named_parameters()))
    optimizer = torch.optim.SGD(model.parameters(), **cases.SGD)

    def step():
        optimizer.step()
        optimizer.zero_grad()

    numbers = cases.compared(name, False, model, model, reference, torch.autograd.backward, step)
    return ended(**numbers | {"local_elements": 1})


def scaled(by):
    return lambda parameters: parameters["model.norm.weight"].register_hook(lambda gradient: gradient * by)


def test_a_copy_is_exact():
    end = trained()
    assert (end.value["loss"], end.value["gradient"], end.value["uncompared"]) == (0, 0, 0)
    assert peer(end).verdict.value == "exact"


@pytest.mark.parametrize("by", [0.0, 0.5, 1.01, 2.0, math.nan])
def test_one_gradient_of_the_wrong_size_is_wrong(by):
    assert peer(trained(scaled(by))).verdict.value == "WRONG"


def test_a_weight_that_is_another_one_is_wrong():
    def spoil(parameters):
        with torch.no_grad():
            parameters["model.layers.0.mlp.down_proj.weight"].mul_(1.01)

    assert peer(trained(spoil)).verdict.value == "WRONG"


def test_parameters_that_do_not_train_are_wrong():
    def spoil(parameters):
        parameters["model.layers.0.mlp.down_proj.weight"].requires_grad_(False)

    assert peer(trained(spoil)).verdict.value == "WRONG"


def test_the_page_says_what_was_found_and_what_was_left_out():
    found = {
        ("ours", "causal", "llama"): ours(ended(), ended()),
        ("ours", "causal", "odd"): ours(*[raised("PlanError", text=TEXT)] * 2),
        ("ours", "causal", "bad"): ours(ended(loss=1.0), ended()),
        ("deepspeed", "causal", "llama"): peer(ended(loss=0.5), ended()),
    }
    versions = {"torch": "1", "transformers": "2", "deepspeed": "3"}
    text = page.page(found, {"none": "no reason"}, 2, versions)
    assert "| `llama` | structure | exact 0.52 | wrong: losses off by 5e-01 |" in text
    assert "| `odd` | — | refused: model.a and 2 more: it folds heads | — |" in text
    assert "| `bad` | structure | **WRONG**: loss off by 1e+00 | — |" in text
    assert "| tpinit | 1 | 1 | 0 | 0 | 1 | 0 | 3 |" in text
    assert "| DeepSpeed AutoTP | 0 | 0 | 0 | 0 | 1 | 0 | 1 |" in text
    assert "Left out of this run: transformers' own TP." in text
    assert "- `none`: no reason" in text
