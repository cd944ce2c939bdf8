"""The error of a malformed question; a module of its own, since `python -m tpinit.cli.main` loads main as another."""

__all__ = ["UsageError"]


class UsageError(Exception):
    """A malformed question. The text says what was given, what is legal and how to fix it; exit code 2."""
