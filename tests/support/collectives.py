"""The collectives that a stretch of code sends, counted where torch.distributed is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime.groups.process_groups import control_groups


class CollectiveCounter:
    """Counts collectives by kind and group size while it is on: those of layers and updates, not the comparisons."""

    NAMES = (
        "all_reduce",
        "reduce",
        "all_gather",
        "all_gather_into_tensor",
        "reduce_scatter_tensor",
        "reduce_scatter",
        "broadcast",
        "barrier",
    )

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    @contextmanager
    def on(self) -> Iterator[None]:
        originals = {name: getattr(dist, name) for name in self.NAMES}

        def counted(name: str) -> Callable[..., Any]:
            def call(tensor: Any, *args: Any, **kwargs: Any) -> Any:
                if kwargs.get("group") in control_groups():
                    return originals[name](tensor, *args, **kwargs)
                size = dist.get_world_size(kwargs.get("group"))
                whole = args[0] if name == "reduce_scatter" else tensor
                held = whole if isinstance(whole, list) else [whole]
                self.calls.append((name, size, sum(one.numel() for one in held if isinstance(one, torch.Tensor))))
                return originals[name](tensor, *args, **kwargs)

            return call

        for name in self.NAMES:
            setattr(dist, name, counted(name))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(dist, name, original)
