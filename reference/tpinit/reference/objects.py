"""Converts users' objects (a call, a config, an mpu, a mesh's group) to `Inputs`, and decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import TypeAlias

from tpinit.reference.config import ConfigReading, read_config, repeated_size_problems
from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.groups import GroupTable
from tpinit.reference.mpu import read_mpu
from tpinit.reference.resolver import resolve
from tpinit.reference.spellings import is_absent, plain_int, show
from tpinit.reference.values import Reader
from tpinit.spec.vocabulary import Call, Decision, DType, Group, Inputs, Mpu

__all__ = ["CallArgs", "ConfigLike", "GroupTable", "Resolver"]

ConfigLike: TypeAlias = "Mapping[str, object] | str | PathLike[str] | ConfigReading | None"


@dataclass(frozen=True, slots=True)
class CallArgs:
    """The arguments of one call of `tp_model_init`, not yet checked: size, dtype, and the group or None."""

    tp_size: object
    dtype: object
    tp_group: object = None


class Resolver:
    """Reads users' objects and decides, for one world. It keeps the identities of that world's groups.

    `world_size` is in ranks. `group_size(group)` returns a group's size in ranks; without it, the size is that
    of the group's own `size()`, or the number of listed ranks (see `GroupTable`). Raises ConfigError for a world
    that is not an integer of at least 1.
    """

    def __init__(self, world_size: int, group_size: Callable[[object], int] | None = None) -> None:
        ranks = plain_int(world_size)
        if ranks is None or ranks < 1:
            message = "the size of a world is an integer of at least 1"
            raise ConfigError([Problem("world_size", show(world_size), message, "give the number of ranks")])
        self.world_size = ranks
        self.groups = GroupTable(group_size, self.world_size)

    def inputs(
        self,
        *,
        call: CallArgs | None,
        config: ConfigLike = None,
        mpu: object = None,
        mesh_group: object = None,
    ) -> Inputs:
        """Read all the arguments (contract, section 4) without changing any of them (D10).

        `config` is anything that `read_config` takes, or its result. Raises ConfigError with the problems of all
        arguments together; its cause is the first exception that a user's object raised.
        """
        reader = Reader(self.groups)
        reading = self._config(config, reader)
        read_call = None if call is None else self._call(call, reader)
        found_mpu: Mpu | None = None if mpu is None else read_mpu(mpu, self.groups, reader.problems)
        mesh: Group | None = None
        if mesh_group is not None:
            mesh = self.groups.group(mesh_group, "mesh.tp_group", reader.problems)
        section = reading.section
        if section is not None and read_call is not None:
            reader.problems += repeated_size_problems(section, {"tp_size in tp_model_init": read_call.tp_size})
        if reader.problems:
            raise ConfigError(reader.problems)
        return Inputs(self.world_size, read_call, section, reading.precision, found_mpu, mesh)

    def resolve(
        self,
        *,
        call: CallArgs | None,
        config: ConfigLike = None,
        mpu: object = None,
        mesh_group: object = None,
    ) -> Decision:
        """Read all the arguments and decide. Raises ConfigError as `inputs` does, and nothing else."""
        return resolve(self.inputs(call=call, config=config, mpu=mpu, mesh_group=mesh_group))

    def _config(self, config: ConfigLike, reader: Reader) -> ConfigReading:
        if isinstance(config, ConfigReading):
            section = config.section
            if section is None or section.tp_group is None:
                return config
            # Another table assigned this identity. Ours assigns its own, by the object itself.
            group = self.groups.group(section.tp_group.handle, "tensor_parallel.tp.tp_group", reader.problems)
            return replace(config, section=replace(section, tp_group=group))
        try:
            return read_config(config, groups=self.groups)
        except ConfigError as error:
            reader.problems += error.problems
            return ConfigReading()

    def _call(self, call: CallArgs, reader: Reader) -> Call | None:
        """Read the call. It always has a size and a dtype (section 4), so "auto" and None are malformed."""
        if not isinstance(call, CallArgs):
            reader.note("call", call, "a call is described by CallArgs(tp_size, dtype, tp_group)", "give a CallArgs")
            return None
        size: int | None = None
        dtype: DType | None = None
        if is_absent(call.tp_size):
            reader.note("call.tp_size", call.tp_size, "tp_model_init always has a size", "give tp_size an integer")
        else:
            size = reader.size(call.tp_size, "call.tp_size")
        if is_absent(call.dtype):
            reader.note(
                "call.dtype", call.dtype, "tp_model_init always has a dtype", "give dtype, such as torch.bfloat16"
            )
        else:
            dtype = reader.dtype(call.dtype, "call.dtype")
        group: Group | None = None
        if isinstance(call.tp_group, str):
            reader.note("call.tp_group", call.tp_group, "this is not a process group", "give a group, or leave it out")
        elif call.tp_group is not None:
            group = self.groups.group(call.tp_group, "call.tp_group", reader.problems)
        return Call(size, dtype, group) if size is not None and dtype is not None else None
