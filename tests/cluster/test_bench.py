"""The benchmark runs and tells what it found; how fast anything was is not looked at."""

import json
import math
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.bench.measure import COMPARED
from deploy.bench.sides import SIDES
from tests.cluster.conftest import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

SIZES = "--pairs 1 --clients 1 --requests 2 --prompt-tokens 8 --max-tokens 4 --dtype float32"
TIMEOUT_S = 800.0
STOP_WAIT_S = 60.0
MARK = "EXPERTMESH_TEST_BENCH"  # in the environment of all that the benchmark starts


def running_with(mark: str) -> list[str]:
    """Command lines of the processes that carry the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def run_benchmark(words: list[str], mark: str) -> tuple[int, str]:
    """Exit code and what was printed; ended by SIGTERM if it takes too long."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy", "bench", *words],
        cwd=ROOT,
        env={**os.environ, MARK: mark},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        printed, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=STOP_WAIT_S)
    return process.returncode, printed


def assert_positive(one: dict[str, Any]) -> None:
    for quantity in COMPARED:
        assert math.isfinite(one[quantity]) and one[quantity] > 0, (quantity, one)


def test_throughput_measures_both_sides_and_leaves_nothing_running(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, out, mark = checkpoint("deepseek_v3"), tmp_path / "out.json", uuid.uuid4().hex
    code, printed = run_benchmark(
        ["throughput", *SIZES.split(), "--models", str(folder), "--json", str(out)], mark
    )
    assert code == 0, printed
    assert running_with(mark) == []
    report = json.loads(out.read_text())
    assert report["is_complete"]
    assert report["circumstances"]["command"] in printed
    measurements = report["measurements"]
    assert [one["side"] for one in measurements] == list(SIDES)
    for one in measurements:
        assert_positive(one)
        assert (one["requests"], one["failed"], one["output_tokens"]) == (2, 0, 8)
    assert [one["quantity"] for one in report["comparisons"]] == list(COMPARED)
    assert all(one["ratio"] > 0 for one in report["comparisons"])


def test_dispatch_splits_a_layer_into_parts(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    out, mark = tmp_path / "out.json", uuid.uuid4().hex
    words = ["dispatch", "--shards", "1,2", "--tokens", "1,5", "--steps", "4", "--dtype", "float32"]
    words += ["--model", str(checkpoint("deepseek_v3")), "--json", str(out)]
    code, printed = run_benchmark(words, mark)
    assert code == 0, printed
    assert running_with(mark) == []
    report = json.loads(out.read_text())
    assert report["circumstances"]["command"] in printed
    splits = report["splits"]
    assert [(one["shards"], one["tokens"]) for one in splits] == [(1, 1), (1, 5), (2, 1), (2, 5)]
    for one in splits:
        for part in ("choose", "send", "queue", "compute", "combine", "beyond"):
            assert 0 < one[part] < one["layer"], one
        # A shard may have begun before the sender came to wait for it, so idle may be below zero.
        assert -one["layer"] < one["idle"] < one["layer"], one
