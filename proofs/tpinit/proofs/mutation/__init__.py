"""Mutation testing of the theorems and the tests: each mutant of the contract and of its code must be killed."""
