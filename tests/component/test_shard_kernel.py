"""What a shard computes rows with, in the type that this CPU is given and in fewer bits."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.hardware import choose_dtype, this_machine
from tests.support.compare import program
from tests.support.deepseek_v4 import make_deepseek_v4
from tests.support.hardware import bfloat16_alone, needs_amx
from tests.support.quantised import FORMATS, make_quantised

MOST_ERROR = 0.03  # of all rows' norm; 0.002 to 0.016 is seen, most where activations are bytes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def seen(folder: Path, dtype: str, twin: Path, twins_dtype: str = "float32") -> dict[str, Any]:
    words, environment = program(
        "tests.support.kernel_rows", str(folder), dtype, str(twin), twins_dtype
    )
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{folder.name}: {told}")
    return told


def check(told: dict[str, Any]) -> None:
    assert told["error"] < MOST_ERROR
    assert told["error_of_another_expert"] > 0.5
    assert told["differing_batches"] == 0, "bits depend on the batch"
    assert told["rows_that_differ_in_another_slot"] == 0


def test_rows_in_this_machines_type(checkpoint: Callable[[str], Path]) -> None:
    """The first thing that a process computes: AMX must have been asked for."""
    folder = checkpoint("deepseek_v3")
    told = seen(folder, choose_dtype(this_machine().flags, False, "auto"), folder)
    check(told)
    assert told["is_called_alone"]
    assert (told["experts"] == "PackedExperts") is bfloat16_alone()
    assert told["rows_that_differ_within_vllms_layers"] == 0


@needs_amx
@pytest.mark.parametrize("name", FORMATS)
def test_rows_through_experts_in_fewer_bits(name: str, tmp_path: Path) -> None:
    stored, twin = make_quantised(name, tmp_path)
    check(seen(stored, "bfloat16", twin))


@needs_amx
def test_rows_through_experts_of_deepseek_v4(tmp_path: Path) -> None:
    """Its attention does not run on a CPU with this vLLM; its shards do."""
    stored, twin = make_deepseek_v4(tmp_path)
    check(seen(stored, "bfloat16", twin, "bfloat16"))
