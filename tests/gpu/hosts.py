"""The worlds that a host's GPUs allow, and what a run covered of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["WORLDS", "GpuWorld", "coverage", "gpus", "reason_to_skip"]


@dataclass(frozen=True)
class GpuWorld:
    """A kind of world: so many ranks, the backend of their group, and how many GPUs they need."""

    ranks: int
    backend: str
    gpus: int

    @property
    def name(self) -> str:
        where = "" if self.gpus == self.ranks else f" on {self.gpus} GPU"
        return f"{self.backend}, {self.ranks} rank{'s' if self.ranks > 1 else ''}{where}"


WORLDS = (GpuWorld(1, "nccl", 1), GpuWorld(2, "gloo", 1), GpuWorld(2, "nccl", 2), GpuWorld(4, "nccl", 4))


def gpus() -> tuple[int, str]:
    """Return how many GPUs this process can use, and a description; CUDA is not initialised."""
    if importlib.util.find_spec("torch") is None:
        return 0, "torch is not installed"
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return 0, f"torch {torch.__version__} has no CUDA"
    count = torch.cuda.device_count()
    return count, f"torch {torch.__version__}, {count} GPU{'s' if count != 1 else ''} visible"


def reason_to_skip(world: GpuWorld, count: int) -> str | None:
    """Return why a world can't be started with so many GPUs; None if it can."""
    import torch.distributed as dist

    if count < world.gpus:
        return f"needs {world.gpus} GPU{'s' if world.gpus > 1 else ''}, {count} visible"
    if not dist.is_backend_available(world.backend):
        return f"this torch has no {world.backend}"
    return None


def coverage(count: int, description: str, covered: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the lines that say what a run covered, by world, and why it covered no more."""
    if not count:
        return [f"no GPU: covered nothing ({description})"]
    lines = [f"on {description}:"]
    for world in WORLDS:
        reason = reason_to_skip(world, count)
        found = ", ".join(covered.get(world.name, ())) or "nothing"
        lines.append(f"  {world.name}: " + (f"not covered, {reason}" if reason else f"covered {found}"))
    return lines
