"""What of a model is a weight matrix, or a block of experts: known from what a module is and does, not by a name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["LinearInfo", "expert_weights", "flat_expert_shapes", "find_experts", "find_linears"]


@dataclass(frozen=True, slots=True)
class LinearInfo:
    """A module that multiplies the last dimension of its input by a weight: a linear layer, or GPT-2's Conv1D.

    `out_dim` is the dimension of the weight that the output's features lie along: 0 for [out, in], 1 for [in, out].
    """

    name: str
    module: nn.Module
    out_dim: int

    @property
    def out_features(self) -> int:
        """The size of the output's last dimension."""
        return int(self._weight.shape[self.out_dim])

    @property
    def in_features(self) -> int:
        """The size of the input's last dimension."""
        return int(self._weight.shape[1 - self.out_dim])

    @property
    def _weight(self) -> torch.Tensor:
        weight = self.module.weight
        assert isinstance(weight, torch.Tensor)
        return weight


def find_linears(model: nn.Module) -> dict[str, LinearInfo]:
    """Return every module that is a weight matrix, by its name: nn.Linear and what derives from it, and Conv1D."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if type(module).forward is nn.Linear.forward or _is_linear(module):
                found[name] = LinearInfo(name, module, 0)
        elif type(module).__module__ == "transformers.pytorch_utils" and type(module).__qualname__ == "Conv1D":
            found[name] = LinearInfo(name, module, 1)
    return found


def _is_linear(module: nn.Linear) -> bool:
    """Tell whether what derives from a linear layer still computes what one does (a router does not)."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((1, 2, module.in_features), generator=generator)
    random = torch.randn((module.out_features, module.in_features), generator=generator)
    bias = None if module.bias is None else torch.randn(module.out_features, generator=generator)
    kept = module.__dict__.pop("forward", None)
    module.__dict__["weight"] = random
    if bias is not None:
        module.__dict__["bias"] = bias
    try:
        with torch.no_grad():
            found = module.forward(features)
    except Exception:  # it asks for more than its input: it is something else
        return False
    finally:
        del module.__dict__["weight"]
        module.__dict__.pop("bias", None)
        if kept is not None:
            module.__dict__["forward"] = kept
    expected = nn.functional.linear(features, random, bias)
    return (
        isinstance(found, torch.Tensor)
        and found.shape == expected.shape
        and torch.allclose(found, expected, 1e-3, 1e-3)
    )


def find_experts(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module that holds the weights of all experts of a layer, by its name.

    In tensors of three dimensions; or of two, the rows of one expert after those of another, in a module below.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not any(name.startswith(f"{outer}.") for outer in found) and (
            _stacked(module) or flat_expert_shapes(module)
        ):
            found[name] = module
    return found


def _stacked(module: nn.Module) -> bool:
    return {"gate_up_proj", "down_proj"} <= {key for key, one in module._parameters.items() if one is not None} and all(
        one is None or one.dim() == 3 for key, one in module._parameters.items() if key.endswith("_proj")
    )


def flat_expert_shapes(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Return, where all weights below a module are [experts * width, hidden], what (experts, width) may be."""
    if any(one is not None for one in module._parameters.values()) or not any(module.children()):
        return ()
    numbers = {one for one in vars(module).values() if type(one) is int and one > 1}
    shapes: list[tuple[int, ...]] = []
    for name, one in module.named_parameters():
        shapes.append(tuple(one.shape))
        if shapes[0] != shapes[-1] or name.endswith((".weight", ".bias")):
            return ()  # most modules at their first parameter: the others are not gone through
    if len(shapes) < 2:
        return ()
    shape = shapes[0]
    if len(shape) != 2 or shape[1] not in numbers:
        return ()
    pairs = ((count, shape[0] // count) for count in sorted(numbers) if shape[0] % count == 0)
    return tuple((count, width) for count, width in pairs if width in numbers)


def expert_weights(module: nn.Module) -> list[str]:
    """Return the names, below a block of experts, of the weights that are cut together."""
    return ["gate_up_proj", "down_proj"] if _stacked(module) else [name for name, _ in module.named_parameters()]
