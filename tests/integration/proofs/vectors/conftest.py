"""Vectors, generated once for all tests of their files."""

from __future__ import annotations

import pytest
from tpinit.conformance.oracle import oracle
from tpinit.proofs.vectors.generating import generate
from tpinit.reference.resolver import resolve

FAST = {"resolver": resolve, "brute force": oracle}


@pytest.fixture(scope="session")
def generated():
    """All of it again, asked of the two oracles that are quick; `tpinit vectors --check` asks Z3 as well."""
    return generate(FAST)
