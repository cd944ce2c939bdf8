"""`generate` of a sharded model: every rank of a TP group generates the same tokens, and stops with the others.

Sampled tokens are drawn between the forwards, so the ranks share their RNG states from the first forward to the last.
The ranks compare the arguments before, each forward, and the tokens behind the last one: a rank that stops earlier than
the others, or raises, would leave them in a collective.
"""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from tpinit.runtime.errors import AgreementError
from tpinit.runtime.training.call_check import CallCheck

__all__ = ["share_generate"]

_NEVER = float("inf")  # seconds: transformers' own criterion, which reads the clock of each rank, never stops then


class _AgreedTime:
    """A stopping criterion: the time is over on all ranks of a TP group as soon as it is over on one of them."""

    def __init__(self, check: CallCheck, model: nn.Module, seconds: float) -> None:
        self.check = check
        self.model = model
        self.end = time.monotonic() + seconds

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        is_over = self.check.any_rank("max_time of generate", self.model, time.monotonic() > self.end)
        return torch.full((input_ids.shape[0],), is_over, dtype=torch.bool, device=input_ids.device)


class SharedGenerate:
    """`model.generate`, which stands in front of the class's method."""

    def __init__(self, check: CallCheck, model: nn.Module) -> None:
        self.check = check
        self.model = model

    @property
    def __wrapped__(self) -> Any:
        return type(self.model).generate.__get__(self.model)  # type: ignore[attr-defined]  # `share_generate` found it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate on all ranks. Raises AgreementError on all ranks if their arguments, tokens or lengths differ.

        What one rank raises passes unchanged there, and the others raise AgreementError.
        """
        check, generate = self.check, self.__wrapped__
        if check.inside_generate or not check.compares:
            return generate(*args, **kwargs)
        check.check_alive("generate")
        check.compare_call("generate", self.model, generate, args, kwargs, keep_rng=True)
        rest, named = _by_name(generate, args, kwargs)
        self._agree_on_time(named)
        result: Any = None
        failure: Exception | None = None
        check.inside_generate = True
        try:
            result = generate(*rest, **named)
        except AgreementError:  # all ranks have it
            raise
        except Exception as error:  # any error: the other ranks wait for this rank's record
            failure = error
        finally:
            check.inside_generate = False
            check.leave_rng()
        self._compare_end(result, failure)
        return result

    def _compare_end(self, result: Any, failure: Exception | None) -> None:
        tokens = result if isinstance(result, torch.Tensor) else getattr(result, "sequences", None)
        found = {"error": type(failure).__name__} if failure is not None else {"tokens": tokens}
        try:
            self.check.compare_call("end of generate", self.model, _end, (), found)
        except AgreementError as error:
            if failure is not None:
                raise failure from error
            raise
        if failure is not None:
            raise failure

    def _agree_on_time(self, named: dict[str, Any]) -> None:
        """Replace `max_time` among the arguments, or in a config, by a criterion that the ranks share."""
        config = named.get("generation_config")
        own = getattr(self.model, "generation_config", None)
        given = (named.get("max_time"), getattr(config, "max_time", None), getattr(own, "max_time", None))
        seconds = next((value for value in given if value is not None), None)
        if seconds is None:
            return
        if config is None:
            named["max_time"] = _NEVER
        else:
            named.pop("max_time", None)
            named["generation_config"] = copy.deepcopy(config)
            named["generation_config"].max_time = _NEVER
        criteria = named.get("stopping_criteria") or ()
        named["stopping_criteria"] = [*criteria, _AgreedTime(self.check, self.model, seconds)]


def _end(**_: Any) -> None:
    """Take what the ranks compare behind `generate`, by name."""


def _by_name(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a call by their parameter, and those that have none: the function takes `*args`."""
    signature = inspect.signature(function)
    rest: list[Any] = []
    named: dict[str, Any] = {}
    for name, value in signature.bind_partial(*args, **kwargs).arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            rest.extend(value)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        else:
            named[name] = value
    return rest, named


def share_generate(model: nn.Module, check: CallCheck) -> None:
    """Put a SharedGenerate in front of `generate` of a sharded model, and of each model inside that has one."""
    for module in model.modules():
        if callable(getattr(type(module), "generate", None)):
            module.__dict__["generate"] = SharedGenerate(check, module)
