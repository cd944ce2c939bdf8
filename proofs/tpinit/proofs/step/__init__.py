"""Theorems about the rules of the step proof, one module a group. Importing this package registers all of them."""

from tpinit.proofs.step import choosing, collecting, kernels, laws, losses, moving, rules, runs, sums, vocabularies

__all__ = ["choosing", "collecting", "kernels", "laws", "losses", "moving", "rules", "runs", "sums", "vocabularies"]
