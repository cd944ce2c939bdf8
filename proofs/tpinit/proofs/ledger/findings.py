"""What is found out about a theorem beside its verdict: witnesses, what its claims need, how the control falls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import z3
from tpinit.proofs.claims import Claim, Theorem, Verdict, right_model
from tpinit.proofs.ledger.cores import needs
from tpinit.proofs.ledger.witnesses import witness
from tpinit.proofs.solvers import decide

__all__ = ["Findings", "explain", "first_to_fall"]

NO_PREMISES = "every input"


@dataclass(frozen=True, slots=True)
class Findings:
    """What a theorem's claims say when asked closely. Each key is told once, with the claims that share it.

    `premises` maps an input that satisfies the premises to the claims that have them, `reached` maps
    each claim that something is possible to the input for which it is, and `cores` maps what is needed
    to the claims that need it. `control` says which claim of the control falls, and for which input.
    """

    premises: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reached: Mapping[str, str] = field(default_factory=dict)
    cores: Mapping[tuple[str, ...], Sequence[str]] = field(default_factory=dict)
    control: str = ""


def explain(theorem: Theorem) -> Findings:
    """Find witnesses and cores of a theorem that is claims. One that an engine decides has none.

    Raises CoreError where a claim does not follow, and ValueError where it has no witness: for a
    theorem that is proven neither happens.
    """
    if theorem.claims is None or theorem.mutant is None:
        return Findings()
    premises: dict[str, list[str]] = {}
    reached: dict[str, str] = {}
    cores: dict[tuple[str, ...], list[str]] = {}
    told: dict[int, str] = {}
    claims = list(theorem.claims(right_model()))
    for claim in claims:
        if claim.possible:
            reached[claim.says] = _found(claim, claim.given, claim.then)
            continue
        key = claim.given.get_id()
        if key not in told:
            told[key] = NO_PREMISES if z3.is_true(claim.given) else _found(claim, claim.given)
        premises.setdefault(told[key], []).append(claim.says)
        cores.setdefault(tuple(needs(claim)), []).append(claim.says)
    return Findings(premises, reached, cores, first_to_fall(theorem.claims(theorem.mutant.apply(right_model()))) or "")


def _found(claim: Claim, *terms: z3.BoolRef) -> str:
    found = witness(*terms)
    if found is None:
        raise ValueError(f"{claim.says}: no input was found")
    return found


def first_to_fall(claims: Iterable[Claim]) -> str | None:
    """Say which claim is the first that does not hold, and for which input. None where all hold.

    What could not be decided has not fallen.
    """
    for claim in claims:
        verdict = decide(claim).verdict
        if verdict is Verdict.VACUOUS:
            return f"{claim.says}: no input satisfies the premises"
        if verdict is Verdict.REFUTED and claim.possible:
            return f"{claim.says}: no input does that"
        if verdict is Verdict.REFUTED:
            return f"{claim.says}: falls for {_found(claim, claim.given, z3.Not(claim.then))}"
    return None
