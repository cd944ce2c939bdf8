"""The theorems, one module a group. Importing this package registers them all."""

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
