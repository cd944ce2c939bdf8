"""An implementation as its own tests see it: `pytest --tpinit-adapter adapter:adapter` in this folder.

Here the reference stands in for it; put your own in its place.
"""

from tpinit.conformance.vectors import answer_of, to_inputs
from tpinit.reference import resolve


def adapter(case):
    """Answer one case: the input of a vector in, a result out. Raise `tpinit.conformance.protocol.Skip` to skip it."""
    return answer_of(resolve(to_inputs(case)), case["groups"])


adapter.implementation = {"name": "example", "version": "1.0.0"}
