"""The kit that tests a resolver, ours or anybody's, against the contract.

`oracle` answers one input by brute force, `domain` enumerates a small world completely, and
`strategies` draws from the unbounded one. The first two need the standard library only; `strategies`
needs Hypothesis (the extra `conformance`).
"""
