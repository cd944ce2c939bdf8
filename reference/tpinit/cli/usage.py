"""The error for malformed options. A separate module, because `python -m` loads `main` under another name."""

__all__ = ["UsageError"]


class UsageError(Exception):
    """The options are malformed. The text says what was given, what is legal and how to fix it; exit code 2."""
