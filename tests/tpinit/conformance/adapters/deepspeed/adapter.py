"""The adapter for implementations that shard real models: every case runs in a new world of forked ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tpinit.conformance.adapters.deepspeed.host import RankServer, ServerError
from tpinit.conformance.adapters.deepspeed.jobs import job_of
from tpinit.conformance.adapters.deepspeed.observation import Observation, StartStatus, observe
from tpinit.conformance.protocol import (
    Answer,
    Broken,
    Case,
    Crashed,
    Errored,
    Implementation,
    Result,
    Skip,
    Skipped,
    TimedOut,
)

__all__ = ["RankServerAdapter", "answer_of_observation", "run_job"]

_SHORTEST = 20.0  # seconds: the least time limit that four ranks on two busy cores keep
_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_UNSUPPORTED = "is not supported on your device"  # DeepSpeed's error for fp16 on a CPU: the case is skipped


class RankServerAdapter:
    """Runs every case in a world of its own. `last` is the Observation of the last case, None if it was skipped."""

    def __init__(
        self,
        implementation: str,
        python: Callable[[], str],
        *,
        choices: tuple[str, ...] = (),
        meshes: bool = False,
        extra_path: str = "",
    ) -> None:
        self.implementation = implementation
        self.python = python
        self.choices = choices
        self.meshes = meshes
        self.extra_path = extra_path
        self.last: Observation | None = None
        self.server: RankServer | None = None
        self._count = 0

    def start(self) -> Implementation:
        """Start the fork server. Raises Broken if it does not start."""
        self.server = RankServer(self.implementation, self.python(), self.extra_path)
        try:
            self.server.start()
        except (ServerError, OSError) as error:
            self.stop()
            raise Broken(str(error)) from error
        return Implementation(self.server.name, self.server.version, "Python", choices=self.choices, isolated=True)

    def dialect(self, name: str) -> bool:
        """Return whether the dialect is `documented`."""
        return name == "documented"

    def run(self, case: Case, timeout: float) -> Answer:
        """Run one case; a time limit below 20 s counts as 20 s."""
        self._count += 1
        self.last = None
        try:
            job = job_of(case, str(self._count), max(timeout, _SHORTEST), meshes=self.meshes)
        except Skip as reason:
            return Skipped(str(reason))
        if self.server is None:
            return Crashed("the fork server is not running")
        try:
            seen = run_job(self.server, job)
        except ServerError as error:
            self.start()
            return Crashed(str(error))
        self.last = seen
        return answer_of_observation(case, job["partitions"], seen)

    def stop(self) -> None:
        """End the server and its ranks."""
        if self.server is not None:
            self.server.stop()
            self.server = None


def run_job(server: RankServer, job: Mapping[str, Any], model: str = "m") -> Observation:
    """Run a job. If its training raised or hung, run it again without training to observe the groups too."""
    seen = observe(server.run(job), model)
    failed = seen.ended is StartStatus.ENGINE and (seen.training.raised is not None or bool(seen.hung))
    if not failed or seen.sharding is not None:
        return seen
    steps = [step for step in job["steps"] if step.get("what") != "numbers"]
    untrained = observe(server.run({**job, "steps": steps}), model)
    if untrained.ended is not StartStatus.ENGINE:
        return seen
    return Observation(
        **{
            **{name: getattr(seen, name) for name in Observation.__dataclass_fields__},
            "sharding": untrained.sharding,
            "averaging": untrained.averaging,
            "divisor": untrained.divisor,
            "checking": untrained.checking,
        }
    )


def answer_of_observation(case: Case, partitions: Mapping[str, Any], seen: Observation) -> Answer:
    """Turn an observation into an answer of the protocol; sources of values can't be observed and are left out."""
    observed = _evidence(seen)
    if seen.ended is StartStatus.HANG:
        return TimedOut(f"ranks {list(seen.hung)} hang", str(dict(seen.where)))
    if seen.ended is StartStatus.DIED:
        return Crashed("the process of a rank ended")
    if seen.ended is StartStatus.DISAGREE:
        others = [rank for rank in range(len(seen.steps)) if rank not in seen.errors]
        return Errored(f"{seen.message}, while ranks {others} return an engine")
    if seen.ended is StartStatus.ERROR:
        if _UNSUPPORTED in seen.message:
            return Skipped(f"{seen.message}")
        if not seen.codes:
            return Errored(seen.message)
        # Only an error with `codes` lists all violations; a message names the first one, so `violations` is left out.
        violations = {"violations": list(seen.codes)} if "codes" in next(iter(seen.errors.values())) else {}
        return Result({"outcome": "error", **violations}, {**observed, "says": list(seen.codes)})
    if seen.training.wrong or seen.training.hung:
        how = "hangs in training" if seen.training.hung else "then trains another model than the unsharded one"
        return Errored(f"it returns an engine that {how}")
    return Result(_engine_answer(case, partitions, seen), observed)


def _evidence(seen: Observation) -> dict[str, Any]:
    evidence: dict[str, Any] = {"message": seen.message} if seen.errors else {}
    if seen.changed:
        evidence["input_changed"] = dict(seen.changed)
    for name in ("sharding", "averaging", "checking"):
        if getattr(seen, name) is not None:
            evidence[name] = getattr(seen, name)
    if seen.training.off_by is not None:
        evidence["weights_off_by"] = seen.training.off_by
    if seen.training.raised is not None:
        evidence["training_raises"] = dict(seen.training.raised)
    return evidence


def _engine_answer(case: Case, partitions: Mapping[str, Any], seen: Observation) -> dict[str, Any]:
    degree = max(seen.degrees)
    # A TP size of 1 has no observable effect: count the model as sharded if a size of 1 was requested.
    section, call = case["section"] or {}, case["call"] or {}
    sharded = degree > 1 or 1 in (section.get("autotp_size"), section.get("tp_size"), call.get("tp_size"))
    if not sharded:
        return {"outcome": "no_autotp", "tp_size": {"value": None}, "dtype": _dtype(case, seen)}
    handles = [handle for handle, partition in partitions.items() if sorted(partition) == seen.sharding]
    group = {} if seen.sharding is None else {"tp_group": {"value": handles[0] if handles else None}}
    return {
        "outcome": "init_from_config" if case["section"] is not None else "init_from_call",
        "tp_size": {"value": degree},
        "dtype": _dtype(case, seen),
        **group,
    }


def _dtype(case: Case, seen: Observation) -> dict[str, Any]:
    given = [case["precision"], case["section"] and case["section"]["dtype"], case["call"] and case["call"]["dtype"]]
    if not any(given) and list(seen.dtypes) == ["float32"]:
        return {"value": None}  # the model kept its own dtype
    return {"value": _DTYPES.get("/".join(seen.dtypes))}
