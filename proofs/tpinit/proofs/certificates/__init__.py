"""Certificates: refutations of the propositional theorems that anybody can check without trusting us.

`encoding` makes a formula of the rows and rules, `refuting` has a SAT solver refute it and writes the
formula and the clausal proof down, and `check`, which shares no code with both, checks the two files.

The other theorems, those about sizes, worlds and groups, have no certificate: they rest on two solvers
that agree, Z3 and cvc5, and on brute force over a small domain. What is missing is a checker, not the
proofs. Of 161 implications tried, cvc5 1.4 wrote a proof of all but one without a single trust step
(`proof-granularity=dsl-rewrite`; the one, a table row of `sizes_and_worlds_are_unbounded`, was not
elaborated in 20 seconds; at the coarser `theory-rewrite` every proof has such steps). But what
checks such proofs, Ethos and lfscc of the solver's authors and Carcara for Alethe, comes as source
alone: neither PyPI nor Debian nor npm has any of it, nor the signature of the rules that Ethos reads. cvc5
checking its own proofs would be no second opinion.

The formula of a certificate is what the encoder says it is: that it states the theorem is
read in its comments and tested against all 16 combinations of the facts, not proven.
"""
