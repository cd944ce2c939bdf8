"""The theorems, one module per group. Importing this package registers all of them."""

from tpinit.proofs.theorems import (
    bounds,
    certified,
    classes,
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
    "classes",
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
