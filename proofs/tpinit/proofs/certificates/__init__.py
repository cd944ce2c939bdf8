"""Certificates: refutations of the propositional theorems that anybody can check without trusting us.

`encoding` makes a formula of the rows and rules, `refuting` has a SAT solver refute it and writes the
formula and the clausal proof down, and `check`, which shares no code with both, checks the two files.

The other theorems, those about sizes, worlds and groups, have no certificate: they rest on two solvers
that agree, Z3 and cvc5, and on brute force over a small domain. cvc5 can write its proofs (in its own
calculus, CPC, or as Alethe), but what checks such proofs, Ethos or lfscc from the solver's authors and
Carcara, is built from source alone: neither PyPI nor Debian nor npm has any of them, nor the signature
of CPC's rules, without which no checker can read a proof. cvc5 checking itself would not be a second
opinion. The formula of a certificate is what the encoder says it is: that it states the theorem is
read in its comments and tested against all 16 combinations of the facts, not proven.
"""
