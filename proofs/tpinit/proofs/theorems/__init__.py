"""The theorems, one module a group. Importing this package registers them all."""

from tpinit.proofs.theorems import (
    bounds,
    certified,
    decision,
    distinguishing,
    equivalence,
    merge,
    rows,
    safety,
    sharding,
    shipped,
    topology,
)

__all__ = [
    "bounds",
    "certified",
    "decision",
    "distinguishing",
    "equivalence",
    "merge",
    "rows",
    "safety",
    "sharding",
    "shipped",
    "topology",
]
