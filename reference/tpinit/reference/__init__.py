"""The answer for one input: the reference resolver and what reads real inputs for it.

Importing this package needs the standard library only.
"""

from tpinit.reference.resolver import resolve

__all__ = ["resolve"]
