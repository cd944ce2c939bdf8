"""The evidence for a theorem beside its verdict: witnesses, the premises it needs, how its control fails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import z3
from tpinit.proofs.claims import Claim, Theorem, Verdict, right_model
from tpinit.proofs.ledger.cores import needs
from tpinit.proofs.ledger.witnesses import witness
from tpinit.proofs.solvers import decide

__all__ = ["ProofEvidence", "explain", "first_to_fall"]

NO_PREMISES = "every input"


@dataclass(frozen=True, slots=True)
class ProofEvidence:
    """The evidence for one theorem. Claims with the same evidence share a key.

    `premises` maps an input that satisfies the premises to the labels of the claims with these premises;
    `reached` maps the label of each claim that something is possible to a witness; `cores` maps the needed
    premises to the labels of the claims that need them. `control` is the first claim that is false for the
    control, with an input for which it is false.
    """

    premises: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reached: Mapping[str, str] = field(default_factory=dict)
    cores: Mapping[tuple[str, ...], Sequence[str]] = field(default_factory=dict)
    control: str = ""


def explain(theorem: Theorem) -> ProofEvidence:
    """Return the witnesses and cores of a theorem with claims; a theorem with an engine has none.

    Raises CoreError where a claim does not hold and ValueError where a claim has no witness. Neither happens
    for a theorem that is proven.
    """
    if theorem.claims is None or theorem.mutant is None:
        return ProofEvidence()
    premises: dict[str, list[str]] = {}
    reached: dict[str, str] = {}
    cores: dict[tuple[str, ...], list[str]] = {}
    inputs: dict[int, str] = {}
    claims = list(theorem.claims(right_model()))
    for claim in claims:
        if claim.possible:
            reached[claim.label] = _found(claim, claim.premises, claim.conclusion)
            continue
        key = claim.premises.get_id()
        if key not in inputs:
            inputs[key] = NO_PREMISES if z3.is_true(claim.premises) else _found(claim, claim.premises)
        premises.setdefault(inputs[key], []).append(claim.label)
        cores.setdefault(tuple(needs(claim)), []).append(claim.label)
    return ProofEvidence(
        premises, reached, cores, first_to_fall(theorem.claims(theorem.mutant.apply(right_model()))) or ""
    )


def _found(claim: Claim, *terms: z3.BoolRef) -> str:
    found = witness(*terms)
    if found is None:
        raise ValueError(f"{claim.label}: no input was found")
    return found


def first_to_fall(claims: Iterable[Claim]) -> str | None:
    """Return the label of the first false claim and an input for which it is false; None where no claim is false.

    A claim that is undecided does not count as false.
    """
    for claim in claims:
        verdict = decide(claim).verdict
        if verdict is Verdict.VACUOUS:
            return f"{claim.label}: no input satisfies the premises"
        if verdict is Verdict.REFUTED and claim.possible:
            return f"{claim.label}: no input satisfies it"
        if verdict is Verdict.REFUTED:
            return f"{claim.label}: false for {_found(claim, claim.premises, z3.Not(claim.conclusion))}"
    return None
