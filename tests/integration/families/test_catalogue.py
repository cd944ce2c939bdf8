"""The models that sharding is tested with are fit for it: small, drawn from a seed, and all of them at work."""

import string

import pytest
import torch

from families import catalogue

FROZEN = {"whisper": {"model.encoder.embed_positions.weight"}}  # sinusoids, which transformers does not train


def names():
    return sorted(catalogue.FAMILIES)


def gradients(name, seed=0, data=0):
    model = catalogue.build(name, seed)
    loss = catalogue.loss(name, model, catalogue.batch(name, model, data))
    loss.backward()
    return model, loss.item()


@pytest.mark.parametrize("name", names())
def test_a_seed_says_all(name):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    (one, loss), (again, same) = gradients(name), gradients(name)
    assert torch.equal(before, torch.get_rng_state())
    assert loss == same
    assert one.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), again.state_dict().values(), strict=True))
    other = catalogue.build(name, 1)
    same_weights = {
        k for (k, a), b in zip(one.named_parameters(), other.parameters(), strict=True) if torch.equal(a, b)
    }
    assert same_weights == FROZEN.get(name, set())
    data = catalogue.batch(name, one, 1)
    assert all(torch.equal(a, b) for a, b in zip(data.values(), catalogue.batch(name, one, 1).values(), strict=True))
    assert catalogue.loss(name, one, data).item() != loss


@pytest.mark.parametrize("name", names())
def test_every_parameter_of_a_family_gets_a_gradient(name):
    model, loss = gradients(name)
    assert 0.5 < loss < 10
    parameters = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert dict(model.named_parameters()).keys() - parameters.keys() == FROZEN.get(name, set())
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    assert sum(parameter.numel() for parameter in parameters.values()) < 200_000
    assert all(parameter.grad is not None for parameter in parameters.values())
    largest = max(parameter.grad.abs().max().item() for parameter in parameters.values())
    small = {key for key, parameter in parameters.items() if parameter.grad.abs().max() < 1e-5 * largest}
    assert all(key.endswith(catalogue.VANISHING_GRADIENTS) for key in small), small


@pytest.mark.parametrize("name", names())
def test_no_family_draws_at_random_while_it_trains(name):
    model, _ = gradients(name)
    assert not [key for key, module in model.named_modules() if "Dropout" in type(module).__name__ and module.p]
    data = catalogue.batch(name, model, 0)
    assert catalogue.loss(name, model, data).item() == catalogue.loss(name, model.eval(), data).item()


def test_two_three_and_four_ranks_divide_what_is_meant_to_be_divided():
    uneven = {name for name in catalogue.FAMILIES if "uneven" in name or name == "llama_vocab101"}
    for name in set(catalogue.FAMILIES) - uneven - {"llama_kv1", "llama_kv2"}:
        config = catalogue.build(name).config
        for part in (getattr(config, "text_config", config), getattr(config, "vision_config", config)):
            assert part.hidden_size % 12 == 0
            assert part.num_attention_heads % 12 == 0


def test_what_a_test_overrides_stays_overridden():
    model = catalogue.build("clip", text_config={"num_hidden_layers": 1, "attention_dropout": 0.5})
    assert len(model.text_model.encoder.layers) == 1
    assert model.config.text_config.hidden_size == 48
    model = catalogue.build("llama", attention_dropout=0.5, attn_implementation="sdpa")
    assert model.config.attention_dropout == 0.5
    assert model.config._attn_implementation == "sdpa"


def test_ties_stay_tied_and_ignored_labels_count_for_nothing():
    model = catalogue.build("llama_tied")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    labels = catalogue.batch("llama", model, 0, rows=3, length=8, ignored=5)["labels"]
    assert labels.shape == (3, 8)
    assert ((labels == -100).sum(1) == 5).all()


@pytest.mark.parametrize("letter", string.ascii_lowercase)
def test_every_causal_model_of_the_release_that_can_be_built_trains_a_step(letter):
    problems = {}
    for name in catalogue.causal_models():
        if not name.startswith(letter):
            continue
        model = catalogue.build_causal(name)
        data = catalogue.batch_causal(name, model, 0)
        loss = catalogue.loss_causal(model, data)
        loss.backward()
        again = catalogue.loss_causal(catalogue.build_causal(name), data)
        resting = catalogue.loss_causal(model.eval(), data)
        size = sum(parameter.numel() for parameter in model.parameters())
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not (loss == again == resting and 0.5 < loss < 10 and size < 300_000 and len(gradients) > 5):
            problems[name] = (loss.item(), again.item(), resting.item(), size, len(gradients))
        if not all(gradient.isfinite().all() for gradient in gradients):
            problems[name] = "a gradient is not finite"
    assert problems == {}


def test_what_cannot_be_built_has_a_reason_and_is_refused_with_it():
    assert not catalogue.UNBUILDABLE.keys() & set(catalogue.causal_models())
    for name, reason in catalogue.UNBUILDABLE.items():
        with pytest.raises(ValueError, match=reason):
            catalogue.build_causal(name)
