"""Shards are killed and stopped, by real signals, and lie, in the middle of a fixed batch.

What is claimed: no request fails, no bit of any log-probability differs from the run without
deaths, a silent shard is found by its deadline, what it answers later is dropped, and a shard
that answers wrongly is left and named.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.compare import PROMPTS
from tests.support.kill_scenarios import (
    FAMILY,
    KILL,
    REPLY_TIMEOUT_S,
    SCENARIOS,
    STOP,
    TOKENS,
    Lie,
    Scenario,
    Strike,
)
from tests.support.kills import command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
every_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)


@pytest.fixture(scope="module")
def runs(checkpoint: Callable[[str], Path]) -> dict[str, Any]:
    """What the program saw: `undisturbed`, `again`, and `scenarios` by name."""
    with tempfile.TemporaryDirectory(prefix="exm-") as run_dir:
        words, environment = command(checkpoint(FAMILY), Path(run_dir))
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=800, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        seen: dict[str, Any] = json.loads((Path(run_dir) / "seen.json").read_text())
        return seen


def test_the_undisturbed_batch_gives_the_same_bits_twice(runs: dict[str, Any]) -> None:
    assert runs["again"] == runs["undisturbed"]
    assert [len(t) for t in runs["undisturbed"]["tokens"]] == [TOKENS] * len(PROMPTS)


@every_scenario
def test_the_signal_strikes_when_it_should(scenario: Scenario, runs: dict[str, Any]) -> None:
    seen = runs["scenarios"][scenario.name]
    assert seen["struck_steps"] == [s.step for s in scenario.strikes]
    killed = [s.signal is KILL for s in scenario.strikes]
    assert seen["exitcodes"] == [-KILL if is_killed else None for is_killed in killed]
    assert seen["was_stopped"] == [s.signal is STOP for s in scenario.strikes]


@every_scenario
def test_every_request_completes(scenario: Scenario, runs: dict[str, Any]) -> None:
    seen = runs["scenarios"][scenario.name]
    assert seen["finish_reasons"] == ["length"] * len(PROMPTS)
    assert [len(t) for t in seen["tokens"]] == [TOKENS] * len(PROMPTS)


@every_scenario
def test_no_bit_of_output_changes(scenario: Scenario, runs: dict[str, Any]) -> None:
    seen, undisturbed = runs["scenarios"][scenario.name], runs["undisturbed"]
    assert seen["tokens"] == undisturbed["tokens"]
    assert seen["logprobs"] == undisturbed["logprobs"]


def reason(strike: Strike) -> str:
    """Why attention leaves that shard."""
    if isinstance(strike.signal, Lie):
        return strike.signal.value
    return "connection closed" if strike.signal is KILL else f"no answer within {REPLY_TIMEOUT_S} s"


@every_scenario
def test_only_the_struck_shards_are_lost_and_for_the_right_reason(
    scenario: Scenario, runs: dict[str, Any]
) -> None:
    seen = runs["scenarios"][scenario.name]
    expected = {
        name: reason(strike)
        for name, strike in zip(seen["names"], scenario.strikes, strict=True)
        if not strike.recovers
    }
    assert seen["lost"].keys() == expected.keys()
    for name, words in expected.items():
        assert words in seen["lost"][name]


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.must_resend], ids=lambda s: s.name)
def test_rows_of_a_lost_shard_go_to_another(scenario: Scenario, runs: dict[str, Any]) -> None:
    assert runs["scenarios"][scenario.name]["resends"] > 0


@every_scenario
def test_the_late_answer_of_a_stopped_shard_is_dropped(
    scenario: Scenario, runs: dict[str, Any]
) -> None:
    late = [s for s in scenario.strikes if s.signal in (STOP, Lie.STRANGE) and not s.recovers]
    assert runs["scenarios"][scenario.name]["late_answers"] == len(late)
