"""The peers: name, number of ranks and interpreter of each. Only a peer's own ranks import its code."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OURS", "PATH_VARIABLE", "PEERS", "PYTHON_VARIABLE", "UNSHARDED", "PeerSpec"]

PYTHON_VARIABLE = "TPINIT_DEEPSPEED_PYTHON"
PATH_VARIABLE = "TPINIT_BENCH_PATH"  # a folder with accelerate, which transformers needs to shard a model


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """One implementation. `code` names the module and the class that run it, as "module:Class".

    `wants` is the environment variable with its interpreter, `path` the one with a folder of packages that it needs.
    """

    name: str
    label: str
    code: str
    ranks: int = 2
    wants: str = ""
    path: str = ""


UNSHARDED = PeerSpec("unsharded", "unsharded, 1 process", "benchmarks.peers.unsharded:Unsharded", ranks=1)
OURS = PeerSpec("tpinit", "tpinit", "benchmarks.peers.ours:Ours")
PEERS = (
    UNSHARDED,
    OURS,
    PeerSpec("deepspeed", "DeepSpeed AutoTP", "benchmarks.peers.autotp:AutoTP", wants=PYTHON_VARIABLE),
    PeerSpec(
        "deepspeed-vocab",
        "DeepSpeed AutoTP, vocab_parallel_lm_head",
        "benchmarks.peers.autotp:AutoTPVocabulary",
        wants=PYTHON_VARIABLE,
    ),
    PeerSpec("transformers", "transformers tp_plan", "benchmarks.peers.hf:Transformers", path=PATH_VARIABLE),
    PeerSpec("torch", "torch parallelize_module", "benchmarks.peers.dtensor:Parallelize"),
    PeerSpec("torch-sequence", "torch parallelize_module, sequence", "benchmarks.peers.dtensor:ParallelizeSequence"),
)
