"""Read any decision table and find its gaps, overlaps and redundant rows, each with an example input."""
