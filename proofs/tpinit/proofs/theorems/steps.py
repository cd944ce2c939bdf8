"""Section 6, item 11: the rules by which a sharded step is proven to be the whole one, in `proofs.step`."""

from tpinit.proofs import step

__all__ = ["step"]
