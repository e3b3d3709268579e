"""In a word and in sentences: is the pool whole? Pure."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from monitoring.metric import PREFIX
from monitoring.snapshot import Snapshot
from services.messages import ControllerStatus

Level = Literal["starting", "unavailable", "degraded", "good"]
NAMED = 6  # experts that are named; of the others the number is said
AT_WORK = ("serving", "loading", "leaving")


@dataclass(frozen=True, slots=True)
class Condition:
    """level: the worst that is the matter. problems: each a sentence, the worst first."""

    level: Level
    problems: tuple[str, ...]


def judge(status: ControllerStatus, snapshot: Snapshot) -> Condition:
    """What an operator should know first."""
    missing = _number(snapshot, "experts_without_replica")
    below = _number(snapshot, "experts_below_redundancy") - missing
    target = _number(snapshot, "redundancy_target")
    problems = []
    if missing:
        problems.append(
            f"{_experts(missing)} without a replica; requests that need one wait: "
            f"{_first_missing(snapshot)}."
        )
    if below > 0:
        problems.append(f"{_experts(below)} below the redundancy of {target}.")
    problems += _of_shards(status, _number(snapshot, "shards_wanted"))
    if status.waiting_for:
        problems.append(f"Waiting for {status.waiting_for}.")
    problems += [f"Shard {s.shard_id}: {s.problem}" for s in status.shards if s.problem]
    level: Level = "degraded" if problems else "good"
    if missing or not status.shards:
        level = "unavailable"
    if status.table_version == 0:
        level = "starting"
    return Condition(level, tuple(problems))


def _of_shards(status: ControllerStatus, wanted: int) -> list[str]:
    problems = []
    there = sum(s.state in AT_WORK for s in status.shards)
    if there < wanted:
        problems.append(f"{there} of {wanted} shards there; Serve starts what is missing.")
    for state, meaning in (("suspected", "does not answer"), ("empty", "holds nothing yet")):
        problems += [f"Shard {s.shard_id} {meaning}." for s in status.shards if s.state == state]
    return problems


def _experts(count: int) -> str:
    return f"{count} expert{'s are' if count != 1 else ' is'}"


def _first_missing(snapshot: Snapshot) -> str:
    replicas = snapshot.values[f"{PREFIX}expert_replicas",]
    cells = np.argwhere(replicas == 0)
    named = ", ".join(f"layer {layer} expert {expert}" for layer, expert in cells[:NAMED])
    return named + (f" and {len(cells) - NAMED} more" if len(cells) > NAMED else "")


def _number(snapshot: Snapshot, name: str) -> int:
    value = snapshot.values.get((f"{PREFIX}{name}",))
    return 0 if value is None else int(value)
