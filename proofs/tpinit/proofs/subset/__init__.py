"""The provable subset of Python: which syntax the proven modules may use, and whether what runs is that source."""
