"""The sharded models of this process, for functions of torch that are given nothing but tensors or an optimizer."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from tpinit.runtime.groups.process_groups import ParallelGroups
from tpinit.runtime.parallel.forward_scope import scope_of
from tpinit.runtime.planning.schema import GradientRule, ParameterPlan
from tpinit.runtime.settings import Averaging
from tpinit.runtime.training.backward_hooks import BackwardHooks
from tpinit.runtime.training.own_nodes import OwnNodes
from tpinit.runtime.training.param_state import ParamState

__all__ = ["ShardedTensors", "known_models", "sharded_models"]


class ShardedTensors:
    """The parameters of one sharded model, with their hooks and groups. It is an attribute of the model.

    `optimizer` is the one that `initialize` got. `before_norm` is called with the name of a function before that
    computes a norm over the ranks, and may raise; `meet` with the name of any other call of all ranks. `parts` are the
    records, by id, of the parameters of which this rank has a part, or whose gradients the TP group adds up;
    `own_nodes` tells which nodes of a graph may read them.
    """

    def __init__(
        self, states: Sequence[ParamState], groups: ParallelGroups, device: torch.device, averaging: Averaging
    ) -> None:
        self.states = list(states)
        self.groups = groups
        self.device = device
        self.hooks = BackwardHooks(states, groups, device, averaging)
        self.optimizer: Optimizer | None = None
        self.before_norm: Callable[[str], None] = lambda _: None
        self.meet: Callable[[str], None] = lambda _: None
        self.ids = frozenset(id(state.parameter) for state in states)
        self.sharded_ids = frozenset(id(state.parameter) for state in states if state.record.dim is not None)
        self.parts: dict[int, ParameterPlan] = {}
        if groups.tp.group is not None:
            partial = (state for state in states if _is_part(state.record))
            self.parts = {id(state.parameter): state.record for state in partial}
        self.own_nodes = OwnNodes()
        _models.add(self)

    def attach(self, model: nn.Module) -> None:
        """Make this live as long as the model."""
        model.__dict__["tp_tensors"] = self
        scope = scope_of(model)
        if scope is not None:
            scope.add(self.own_nodes.enter, self.own_nodes.leave)
            scope.on_lone_call = self.own_nodes.begin_lone

    def find(self, tensors: Iterable[torch.Tensor]) -> list[tuple[ParamState, torch.Tensor]]:
        """Return (state, tensor) of each tensor that is a parameter of the model or the gradient of one."""
        wanted = {id(tensor) for tensor in tensors}
        pairs = [(state, one) for state in self.states for one in (state.parameter, state.parameter.grad)]
        return [(state, one) for state, one in pairs if one is not None and id(one) in wanted]

    def __deepcopy__(self, memo: dict[int, Any]) -> ShardedTensors:
        """Return that of a copied model, which has hooks of its own and no optimizer."""
        states = []
        for state in self.states:
            parameter = copy.deepcopy(state.parameter, memo)
            states.append(replace(state, parameter=parameter, target=parameter, shown=None, taken=False, summed=False))
        memo[id(self)] = twin = ShardedTensors(states, self.groups, self.device, self.hooks.averaging)
        twin.own_nodes = copy.deepcopy(self.own_nodes, memo)  # the one that the scope of the copied model calls
        return twin

    def __reduce_ex__(self, _: Any) -> Any:
        """Pickle as None: a model of TP size 1, of which this is an attribute, is whole without it."""
        return type(None), ()


def _is_part(record: ParameterPlan) -> bool:
    return record.dim is not None or record.gradient_rule is GradientRule.PARTIAL


_models: weakref.WeakSet[ShardedTensors] = weakref.WeakSet()


def known_models() -> list[ShardedTensors]:
    """Return the initialized models of this process, in no order."""
    return list(_models)


def sharded_models() -> list[ShardedTensors]:
    """Return the models of this process of which a rank has parts of parameters or gradients, as initialized."""
    models = [model for model in _models if model.groups.tp.group is not None or model.hooks.owned_in() is not None]
    return sorted(models, key=lambda model: model.groups.run)
