"""The reference resolver behind the adapter interface."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tpinit.conformance.vectors import answer_of, to_inputs
from tpinit.reference.resolver import resolve

__all__ = ["adapter"]


def adapter(case: dict[str, Any]) -> dict[str, Any]:
    """Answer one case by the contract."""
    inputs = to_inputs(case)
    return answer_of(resolve(inputs), case["groups"])


def _version() -> str:
    try:
        return version("tpinit")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0"


adapter.implementation = {"name": "reference", "version": _version()}  # type: ignore[attr-defined] # functions have attributes
