"""What several layers of tests share: worlds of real processes, counters of collectives, tiny models."""
