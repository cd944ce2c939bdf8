"""Names of DeepSpeed's engine that this engine does not have: each is refused with what to do instead."""

from __future__ import annotations

from tpinit.reference.spellings import nearest
from tpinit.runtime.errors import MissingCallError

__all__ = ["NOT_ON_THE_ENGINE", "missing_name"]

NOT_ON_THE_ENGINE: dict[str, str] = {
    "monitor": "monitors are not implemented; log what engine(...) and engine.get_global_grad_norm() return",
}
"""What to do instead, by the name of DeepSpeed's engine or of torch.nn.Module."""


def missing_name(name: str, known: list[str]) -> AttributeError:
    """Return the error for a name that the engine lacks. `known` are the names that it has.

    A name of DeepSpeed's engine gives MissingCallError, a TpinitError and an AttributeError: `hasattr` answers False.
    """
    if name in NOT_ON_THE_ENGINE:
        advice = NOT_ON_THE_ENGINE[name]
        return MissingCallError(f"the engine has no {name}: {advice}")
    near = nearest(name, known) if not name.startswith("_") else None
    return AttributeError(f"the engine has no attribute {name}" + (f"; did you mean {near}?" if near else ""))
