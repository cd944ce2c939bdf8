"""Why the contract holds, for every input: theorems, solvers, symbolic execution, negative controls."""
