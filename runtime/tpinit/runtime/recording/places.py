"""Where an operation was issued: read from the stack of Python, so that nothing is attached to the model."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from types import FrameType

import torch
from torch import nn
from tpinit.runtime.internals.autograd_private import next_node_number, node_number
from tpinit.runtime.internals.record_private import backward_node, runs_backward
from tpinit.step.graph import OpPlace

__all__ = ["Places", "module_paths"]

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep
_RUNTIME = os.path.dirname(os.path.dirname(_OWN))
_ISSUING = (os.path.join(_RUNTIME, "groups") + os.sep, os.path.join(_RUNTIME, "parallel", "tally.py"))
_PASSED = (_TORCH, _OWN, *_ISSUING)  # collectives pass through the last two
_CALL = nn.Module.__call__.__code__  # of each frame that calls a module
_BACKWARD = "backward"


def module_paths(model: nn.Module) -> dict[int, str]:
    """Return the path of each module of a model by its id."""
    return {id(module): name for name, module in model.named_modules(remove_duplicate=True)}


class Places:
    """Tells where operations are issued: one of the backward in the module whose forward it derives."""

    def __init__(self, paths: Mapping[int, str]) -> None:
        self._paths = paths
        self._by_node: dict[int, tuple[str, str]] = {}

    def here(self, phase: str) -> OpPlace:
        """Return the place of the operation that is being issued."""
        module, line = self._of_stack()
        node = backward_node() if phase == _BACKWARD else None
        if node is not None:
            of_forward = self._by_node.get(node_number(node), ("", ""))
            module, line = module or of_forward[0], line or of_forward[1]
        if node is None or torch.is_grad_enabled():  # else it is no forward, nor one that a checkpoint runs again
            self._by_node.setdefault(next_node_number() - 1, (module, line))
        return OpPlace(module, line, phase)

    def _of_stack(self) -> tuple[str, str]:
        """Return the path of the innermost module that is called, and the innermost line of the program.

        Lines of torch, of this room, and of what issues collectives do not count. In a backward both are
        sought inside of what runs it.
        """
        line, path = "", None
        frame: FrameType | None = inspect.currentframe()
        while frame is not None and not runs_backward(frame):
            name = frame.f_code.co_filename
            if not line and not name.startswith(_PASSED) and not name.startswith("<"):
                folder, base = os.path.split(name)
                line = f"{os.path.basename(folder)}/{base}:{frame.f_lineno}"
            if path is None and frame.f_code is _CALL:
                path = self._paths.get(id(frame.f_locals["self"]))
            if line and path is not None:
                break
            frame = frame.f_back
        return path or "", line
