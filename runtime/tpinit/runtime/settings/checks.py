"""The checks of a run: keywords of `initialize`, or a section of the config that DeepSpeed does not have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from tpinit.reference.errors import ConfigError, Problem, TpinitError
from tpinit.reference.spellings import is_absent, show
from tpinit.runtime.settings.schema import Checks

__all__ = ["CHECKS_SECTION", "read_checks"]

CHECKS_SECTION = "tpinit"
_KEYS = {"check_inputs_every": "inputs_every", "check_replicas_every": "replicas_every", "on_nonfinite": "on_nonfinite"}


def read_checks(config: Mapping[str, object], given: Checks) -> Checks:
    """Return the checks that the config's section `tpinit` asks for, and where it is silent those of the call.

    `given` are the keywords of the call. Raises ConfigError for a value that is not legal, and for one that differs
    from a keyword that is not its default.
    """
    section = config.get(CHECKS_SECTION)
    if not isinstance(section, Mapping):
        return given
    values = {field.name: getattr(given, field.name) for field in fields(Checks)}
    problems = []
    for key, name in _KEYS.items():
        value = section.get(key)
        if is_absent(value):
            continue
        path, keyword = f"{CHECKS_SECTION}.{key}", values[name]
        try:
            Checks.from_arguments(**{**values, name: value})
        except TpinitError as error:
            problems.append(Problem(path, show(value), str(error), f"write {show(getattr(Checks(), name))}"))
            continue
        if keyword not in (value, getattr(Checks(), name)):
            message = f"initialize got {key}={keyword!r}, and both can't hold"
            problems.append(Problem(path, show(value), message, "leave one of the two out"))
        values[name] = value
    if problems:
        raise ConfigError(problems)
    return Checks.from_arguments(**values)
