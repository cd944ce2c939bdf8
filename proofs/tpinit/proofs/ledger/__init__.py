"""The ledger of proofs, as JSON and as a page: each theorem with its verdicts, evidence, and sources."""
