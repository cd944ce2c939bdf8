"""The trained models and batches, as plain numbers. This module imports no torch, because the host imports it too."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LLAMA", "SIZES", "TINY", "Size"]

LEARNING_RATE = 1e-3
SEED = 20
AGREEMENT = 1e-4  # the largest relative difference of a peer's loss from the unsharded model's
COMPARED = 5  # steps whose losses are compared
# Settings of glibc's allocator: on a CPU they decide whether memory that a step frees stays for the next step.
ALLOCATOR_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@dataclass(frozen=True, slots=True)
class Size:
    """A model and its batch. `repeats` multiplies the steps of a block and the number of loads."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    sequence: int
    batch: int
    repeats: int = 1

    @property
    def parameters(self) -> int:
        """The number of parameters of the unsharded model; embedding and head are not tied."""
        head = self.hidden // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_heads * head
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + 2 * self.vocab * self.hidden + self.hidden

    @property
    def description(self) -> str:
        """The size as one line of text."""
        return (
            f"{self.parameters / 1e6:.1f} M parameters, {self.layers} layers, hidden {self.hidden}, "
            f"{self.heads} heads ({self.kv_heads} key-value), vocabulary {self.vocab}, "
            f"sequence {self.sequence}, batch {self.batch}"
        )


LLAMA = Size("llama", 8, 512, 1376, 8, 4, 8192, 256, 4)
TINY = Size("tiny", 2, 64, 128, 4, 2, 256, 32, 2, repeats=4)
SIZES = {size.name: size for size in (LLAMA, TINY)}
