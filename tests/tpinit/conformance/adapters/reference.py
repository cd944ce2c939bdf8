"""The reference resolver as an implementation for the kit: `tpinit conform --impl reference`."""

from __future__ import annotations

from typing import Any

from tpinit.conformance.vectors import answer_of, to_inputs
from tpinit.reference.resolver import resolve

__all__ = ["adapter"]


class _Reference:
    """A callable that answers with the decision of the reference resolver."""

    def __call__(self, case: dict[str, Any]) -> dict[str, Any]:
        """Answer one case."""
        return answer_of(resolve(to_inputs(case)), case["groups"])

    @property
    def implementation(self) -> dict[str, str]:
        """The name and version; a property, because reading the version takes longer than an answer."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            return {"name": "reference", "version": version("tpinit")}
        except PackageNotFoundError:  # run from a source tree that was never installed
            return {"name": "reference", "version": "0"}


adapter = _Reference()
