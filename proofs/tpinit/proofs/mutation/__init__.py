"""Mutation: every theorem and every test of the contract's code, tried on what it must reject (issue 3, item 5)."""
