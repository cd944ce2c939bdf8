"""The contract: shared vocabulary, the table, the prose, and their Z3 model."""
