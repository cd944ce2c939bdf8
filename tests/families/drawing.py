"""Parameters and inputs drawn from a seed, so that every process builds the same model."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor, nn

SCALE = 1.2  # matrices: std = SCALE / sqrt(fan-in), so that layers keep the scale of their input and errors show
EMBEDDING_STD = 0.25  # a larger std would saturate the softmax of tied embeddings
NOISE_STD = 0.1  # noise added to vectors: norms stay about 1 and biases about 0, and neither is constant


def generator(seed: int, name: str) -> torch.Generator:
    """Return a generator for this seed and name, so that the draws of one parameter do not depend on others."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))


def redraw(model: nn.Module, seed: int) -> None:
    """Redraw every trained parameter of `model` in place; tied parameters stay tied.

    Matrices are replaced. Vectors and scalars keep their values plus noise, because their initial values (one for a
    norm, zero for a bias or a Gemma norm, a time constant of a recurrence) matter to the model.
    """
    transposed = {id(m.weight) for m in model.modules() if type(m).__name__ == "Conv1D"}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # a shared parameter occurs once
            if not (parameter.requires_grad and parameter.is_floating_point()):
                continue
            noise = torch.randn(parameter.shape, generator=generator(seed, name))
            if parameter.dim() < 2 or _recurrent(name):
                parameter.add_(NOISE_STD * noise)
            elif id(parameter) in embeddings:
                parameter.copy_(EMBEDDING_STD * noise)
            else:
                parameter.copy_(SCALE * _fan_in(parameter, id(parameter) in transposed) ** -0.5 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):  # of a router: with zeros, a forgotten bias would not show
                buffer.add_(NOISE_STD * torch.randn(buffer.shape, generator=generator(seed, name)))


def _fan_in(parameter: Tensor, transposed: bool) -> int:
    """Return the inputs per output of [out, in], [in, out] (GPT-2), [experts, out, in] or [out, in, *kernel]."""
    if transposed:
        return int(parameter.shape[0])
    if parameter.dim() >= 4:
        return int(parameter[0].numel())
    return max(1, int(parameter.shape[-1]))


def _recurrent(name: str) -> bool:
    """Return whether a matrix holds decay rates of a recurrence, which diverges with values drawn like weights."""
    return name.rsplit(".", 1)[-1] in {"A_log", "A", "D", "dt_bias"}


def quiet(config: Any, keep: frozenset[str] = frozenset()) -> None:
    """Set every dropout probability of a config and its nested configs to 0, except the names in `keep`."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            quiet(value, keep)
        elif name not in keep and isinstance(value, float) and ("drop" in name or name.endswith("jitter_noise")):
            setattr(config, name, 0.0)


def tokens(vocab: int, rows: int, length: int, seed: int, name: str = "input_ids", first: int = 4) -> Tensor:
    """Return token ids [rows, length] from `first` on; smaller ids have special meanings such as padding."""
    return torch.randint(first, vocab, (rows, length), generator=generator(seed, name))
