"""The scenarios of `make test-gpu` run on the CPU, and their judgement sees broken results."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from gpu.hosts import coverage
from gpu.judging import SCENARIOS, judge

from support.paths import TESTS

ROOT = TESTS.parent


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_scenarios_for_gpus_hold_on_the_cpu(world2, scenario):
    function, arguments = SCENARIOS[scenario]
    results = world2.run(f"gpu.scenarios:{function}", kind="cpu", **arguments)
    judge(scenario, results, "cpu")


@pytest.mark.parametrize(
    ("scenario", "results", "kind"),
    [
        ("chosen", [{"device": "cpu", "current": "cuda:0", "parameters": ["cpu"], "batch on the CPU": ""}], "cuda"),
        ("exact-fp32", [{"loss": 1e-3, "weights": 0.0, "skipped": 0}], "cuda"),
        ("exact-bf16", [{"loss": 0.0, "weights": float("nan"), "skipped": 0}], "cuda"),
        ("dropout", [{"losses": [1], "replicated": {"a": n}, "kept": True} for n in "xy"], "cuda"),
        ("dropout", [{"losses": [1], "replicated": {}, "kept": False}], "cuda"),
        ("rng_states", [{"first": [1], "again": [2], "following": [3], "recomputed": 0.0}], "cuda"),
        ("generated", [{"greedy": [1], "whole": [1], "sampled": [n]} for n in range(2)], "cuda"),
        ("saved", [{"parameters": 20, "difference": 1e-3}], "cuda"),
        ("memory", [{"whole": 100, "sharded": 90}] * 2, "cuda"),
        ("host_waits", [{"backward": 1, "step": 1}], "cuda"),
        ("ended", [{"refused": "", "loss": 1.0}], "cuda"),
    ],
)
def test_broken_results_are_seen(scenario, results, kind):
    with pytest.raises(AssertionError):
        judge(scenario, results, kind, exclusive=True)


def test_the_suite_says_what_it_covered_and_what_it_needs(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_backend_available", lambda name: True)
    assert coverage(1, "one GPU", {"nccl, 1 rank": ["chosen", "memory"]}) == [
        "on one GPU:",
        "  nccl, 1 rank: covered chosen, memory",
        "  gloo, 2 ranks on 1 GPU: covered nothing",
        "  nccl, 2 ranks: not covered, needs 2 GPUs, 1 visible",
        "  nccl, 4 ranks: not covered, needs 4 GPUs, 1 visible",
    ]
    assert all("not covered" not in line for line in coverage(4, "four", {}))
    monkeypatch.setattr("torch.distributed.is_backend_available", lambda name: name == "gloo")
    assert coverage(1, "one", {})[1] == "  nccl, 1 rank: not covered, this torch has no nccl"


def test_without_a_gpu_the_suite_ends_well_and_says_that_it_covered_nothing():
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is visible here: make test-gpu covers something")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"]
    found = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stdout
    assert "no GPU: covered nothing" in found.stdout
