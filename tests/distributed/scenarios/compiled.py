"""torch.compile of a sharded model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from scenarios.every_call import same
from support.pairs import pair
from support.refusals import in_step, refusal_of
from support.tiny_models import tokens


class _Called:
    """A compiled function in the place of an engine's model."""

    def __init__(self, engine: Any, call: Callable[..., Any]) -> None:
        self.module, self.plan, self._call = self, engine.plan, call
        self.zero_grad, self.named_parameters = engine.module.zero_grad, engine.module.named_parameters

    def __call__(self, **inputs: Any) -> Any:
        return self._call(**inputs)


def _function(engine: Any) -> Callable[..., Any]:
    return lambda **inputs: engine(**inputs)


def forms(rank: int) -> dict[str, Any]:
    """Compile a model in each way, and compare a step; ask for one graph in each way."""
    results: dict[str, object] = {}
    for form in ("function", "layers", "engine"):
        torch.compiler.reset()
        unsharded, engine = pair(num_hidden_layers=1)
        called: Any = engine
        if form == "layers":
            engine.module.model.layers[0].compile(backend="aot_eager")
        elif form == "engine":
            engine.compile(backend="aot_eager", compile_kwargs={"dynamic": False})
        else:
            called = torch.compile(_function(engine), backend="aot_eager")
        results[form] = same(_Called(engine, called), unsharded)
    torch.compiler.reset()
    hidden, mlp = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0)), engine.module.model.layers[0].mlp
    block = torch.compile(mlp, backend="aot_eager")(hidden)
    results["a block"] = torch.allclose(block, unsharded.model.layers[0].mlp(hidden), atol=1e-5)
    layer = torch.compile(mlp.up_proj, backend="aot_eager")
    penalty = torch.compile(mlp.up_proj.weight.norm, backend="aot_eager")()
    results["a penalty"] = "reads model.layers.0.mlp.up_proj.weight outside" in refusal_of(penalty.backward)
    results["a layer"] = "called by itself, outside of `model.layers.0.mlp`" in refusal_of(lambda: layer(hidden))
    torch.compiler.reset()
    for name, module in (("engine", engine), ("module", engine.module), ("layer", engine.module.model.layers[0])):
        results[f"{name}, one graph"] = "leave fullgraph out" in refusal_of(lambda m=module: m.compile(fullgraph=True))
    as_deepspeeds = ({"compile_kwargs": {"fullgraph": True}}, {"schedule": []}, {"compiled_autograd_enabled": True})
    results["engine, other"] = all(refusal_of(lambda o=options: engine.compile(**o)) for options in as_deepspeeds)
    try:
        torch.compile(engine.module, backend="aot_eager", fullgraph=True)(input_ids=tokens())
    except Exception as error:  # torch's own, with our reason
        results["one graph"] = "leave fullgraph out" in str(error)
    results["after"] = same(engine, unsharded)
    return {"results": results, "in_step": in_step(rank)}
