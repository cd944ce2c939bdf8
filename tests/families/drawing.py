"""Parameters and inputs drawn from a seed, so that every process that builds a model builds the same one."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor, nn

SCALE = 1.2  # of a matrix: std = SCALE / sqrt(fan-in), so that a layer keeps the size of its input, and errors show
EMBEDDING_STD = 0.25  # tied embeddings make logits too: more would saturate the softmax
NOISE_STD = 0.1  # of what is added to vectors: norms stay about 1, biases about 0, neither is a constant


def generator(seed: int, name: str) -> torch.Generator:
    """A stream of its own for every seed and name: what one parameter draws shifts no other's."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))


def redraw(model: nn.Module, seed: int) -> None:
    """Draw every parameter of `model` anew, in place: ties stay tied, what is not trained stays as it is.

    Matrices lose what they were; vectors and scalars keep it and get noise, because what they start from (one for a
    norm, zero for a bias or for a Gemma norm, a time constant of a recurrence) is what the model expects there.
    """
    transposed = {id(m.weight) for m in model.modules() if type(m).__name__ == "Conv1D"}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # each parameter once, however many modules share it
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
            if name.endswith("correction_bias"):  # of a router: zero, it would hide who forgets it
                buffer.add_(NOISE_STD * torch.randn(buffer.shape, generator=generator(seed, name)))


def _fan_in(parameter: Tensor, transposed: bool) -> int:
    """Inputs of one output: [out, in] of a linear, [in, out] of GPT-2, [experts, out, in], [out, in, *kernel]."""
    if transposed:
        return int(parameter.shape[0])
    if parameter.dim() >= 4:
        return int(parameter[0].numel())
    return max(1, int(parameter.shape[-1]))


def _recurrent(name: str) -> bool:
    """True for matrices whose values are decay rates: drawn like weights they would blow up."""
    return name.rsplit(".", 1)[-1] in {"A_log", "A", "D", "dt_bias"}


def quiet(config: Any, keep: frozenset[str] = frozenset()) -> None:
    """Set every dropout probability of a configuration and of those within it to 0, except the names in `keep`."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            quiet(value, keep)
        elif name not in keep and isinstance(value, float) and ("drop" in name or name.endswith("jitter_noise")):
            setattr(config, name, 0.0)


def tokens(vocab: int, rows: int, length: int, seed: int, name: str = "input_ids", first: int = 4) -> Tensor:
    """Token ids [rows, length] from `first` on: the small ids, which mean padding and such, never occur."""
    return torch.randint(first, vocab, (rows, length), generator=generator(seed, name))
