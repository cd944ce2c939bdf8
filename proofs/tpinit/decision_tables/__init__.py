"""Decision tables of anybody's: read one, find its gaps, overlaps and redundant rows, each with a witness."""
