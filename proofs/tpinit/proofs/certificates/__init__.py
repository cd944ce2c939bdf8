"""Certificates: refutations of the propositional theorems, which anyone can check with an independent checker.

`encoding` makes a formula from the rows and rules, `refuting` lets a SAT solver refute it and writes the
formula and the clausal proof, and `check`, which shares no code with the other two, checks the two files.

The theorems about sizes, worlds and groups have no certificate. Their evidence is that two solvers, Z3 and
cvc5, and brute force over a small domain agree. The missing part is a checker, not the proofs: cvc5 1.4 wrote
a proof without trust steps for 160 of 161 implications (`proof-granularity=dsl-rewrite`; the remaining one,
row 3 or 9 of `sizes_and_worlds_are_unbounded`, was not elaborated in 20 seconds; at the coarser
`theory-rewrite` every proof has trust steps). The checkers for such proofs, Ethos, lfscc and Carcara, are
distributed as source only: PyPI, Debian and npm have none of them, nor the signature file that Ethos needs.
A check by cvc5 itself would not be independent.

That the formula of a certificate states the theorem is not proven: its comments document it, and a test
compares it with all 16 combinations of the facts.
"""
