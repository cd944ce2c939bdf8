"""The memory and the collectives of a run, computed before it starts."""
