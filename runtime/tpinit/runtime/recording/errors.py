"""The error of a step that can't be recorded."""

from tpinit.reference.errors import TpinitError

__all__ = ["RecordError"]


class RecordError(TpinitError):
    """A step that can't be recorded exactly: what was found, where, and what to do."""
