"""Models with parameters of sharded features: IA3's vectors in peft, scales and gates between the layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from peft import IA3Config, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from tpinit.runtime import initialize
from tpinit.runtime.slicing import local_part
from tpinit.runtime.training.gradient_parts import plain_gradient

from support.refusals import in_step
from support.tiny_models import build, tokens

RATE, STEPS = 0.1, 2


def _whole_model() -> Any:
    """Return a model with IA3 at peft's default modules, an adapter that is not active, and random vectors."""
    model = get_peft_model(build(num_key_value_heads=2), IA3Config(task_type="CAUSAL_LM"))
    model.add_adapter("other", IA3Config(task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "ia3_l" in name:
            parameter.data = torch.rand(parameter.shape, generator=generator) + 0.5
    return model


def _apart(whole: Any, engine: Any, of: str) -> float:
    """Return the largest difference of `grad` or `data` between a rank's parts and those of the whole model."""
    plan, gaps = engine.plan, []
    for record in plan.parameters:
        expected, found = (getattr(model.get_parameter(record.name), of) for model in (whole, engine.module))
        assert (expected is None) == (found is None)
        if expected is not None:
            found = plain_gradient(found) if of == "grad" else found
            gaps.append(float((local_part(expected, record, plan.tp_size, plan.tp_rank) - found).abs().max()))
    return max(gaps)


def _generated(model: Any) -> list[list[int]]:
    tokens_: torch.Tensor = model.generate(
        input_ids=tokens()[:, :4], max_new_tokens=5, do_sample=False, pad_token_id=0, attention_mask=torch.ones(2, 4)
    )
    return tokens_.tolist()


def ia3(rank: int, folder: str, sequence_parallel: bool) -> dict[str, Any]:
    """Train, switch adapters, merge, generate and save a model with IA3, beside the unsharded one."""
    model = _whole_model()
    whole = copy.deepcopy(model)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=RATE)
    engine, *_ = initialize(
        model=model,
        optimizer=optimizer,
        config={"tensor_parallel": {"autotp_size": dist.get_world_size()}, "gradient_clipping": 0},
        sequence_parallel=sequence_parallel,
        verify="probe",
    )
    own = torch.optim.SGD([one for one in whole.parameters() if one.requires_grad], lr=RATE)
    gaps: dict[str, float] = {}
    for step in range(STEPS):
        ids = tokens(step)
        loss, expected = engine(input_ids=ids, labels=ids).loss, whole(input_ids=ids, labels=ids).loss
        expected.backward()
        loss.backward()
        gaps[f"loss {step}"] = abs(float(loss.detach()) - float(expected.detach()))
        gaps[f"gradients {step}"] = _apart(whole, engine, "grad")
        optimizer.step()
        own.step()
        optimizer.zero_grad()
        own.zero_grad()
    gaps["weights"] = _apart(whole, engine, "data")
    moved = _apart(_whole_model(), engine, "data")
    for name in ("other", "default"):
        for one in (engine.module, whole):
            one.set_adapter(name)
        with torch.no_grad():
            outputs = [one(input_ids=tokens()).logits for one in (engine.module, whole)]
        gaps[f"adapter {name}"] = float((outputs[0] - outputs[1]).abs().max())
    same_tokens = _generated(engine.module) == _generated(whole)
    engine.module.save_pretrained(folder)
    dist.barrier()
    saved, held = load_file(f"{folder}/adapter_model.safetensors"), get_peft_model_state_dict(whole)
    gaps["saved"] = max(float((saved[name] - held[name]).abs().max()) for name in held)
    for one in (engine.module, whole):
        one.merge_adapter()
    gaps["merged"] = _apart(whole, engine, "data")
    sharded = sum(record.dim is not None for record in engine.plan.parameters if "ia3_l" in record.name)
    return {
        "gaps": gaps,
        "moved": moved,
        "tokens": same_tokens,
        "names": sorted(saved) == sorted(held),
        "sharded": sharded,
        "in_step": in_step(rank),
    }
