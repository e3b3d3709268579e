"""How `status` prints what runs."""

import json

import pytest

from deploy.ask import RunStatus
from deploy.processes import ProcessId
from deploy.records import RunRecord
from deploy.show import compact, describe_held, size, status_json, status_text
from services.messages import ControllerStatus, DecisionStatus, ShardStatus
from services.ray_session import DeploymentState

MIB = 1024**2
RECORD = RunRecord(
    "one", ProcessId(7, 70), "http://127.0.0.1:8000/v1", False, "127.0.0.1:6379", is_ready=True
)


def shard(name: str, held: tuple[tuple[int, ...], ...], **more: object) -> ShardStatus:
    values = {
        "shard_id": name,
        "host": "0123456789abcdef",
        "state": "serving",
        "slots_used": sum(len(layer) for layer in held),
        "slots_total": 8,
        "loading": 0,
        "held": held,
        "rows": 0,
        "resident_bytes": 3 * 1024 * MIB,
        "weight_bytes": 96 * MIB,
        "read_bytes": 192 * MIB,
    }
    return ShardStatus(**{**values, **more})  # type: ignore[arg-type]


KNOWN = ControllerStatus(
    table_version=7,
    complete=True,
    redundancy=2,
    waiting_for="",
    shards=(
        shard("a", ((0, 1, 2, 3), (0, 1, 2, 3))),
        shard("b", ((4, 5), (5,)), loading=1, problem="disk is slow"),
    ),
    readers={"x": 7, "w": 6},
    imbalance=1.25,
    moves_left=3,
    last_decision=DecisionStatus(12.3, "loads", True, "saves 900 rows", 5, 1.6, 1.2),
)
STATES = (
    DeploymentState("Controller", "HEALTHY", 1, ""),
    DeploymentState("ExpertShard", "UPDATING", 2, "one is late"),
)


def test_everything_known_is_shown() -> None:
    assert status_text([RunStatus(RECORD, STATES, KNOWN)]).splitlines() == [
        "one: ready, http://127.0.0.1:8000/v1, process 7, Ray at 127.0.0.1:6379",
        "",
        "deployment   status    replicas",
        "Controller   HEALTHY   1",
        "ExpertShard  UPDATING  2",
        "ExpertShard: one is late",
        "",
        "table version 7, complete, redundancy 2",
        "load: max/mean over shards 1.25 of the last seconds' rows, 3 moves under way",
        "last decision, 12 s ago: accepted, cause: loads; saves 900 rows; 5 moves, "
        "max/mean 1.60 -> 1.20",
        "",
        "shard  host      state      slots used  resident  weights   read       experts",
        "a      01234567  serving    8 of 8      3.00 GiB  96.0 MiB  192.0 MiB  0-3 of every layer",
        "b      01234567  loading 1  3 of 8      3.00 GiB  96.0 MiB  192.0 MiB  "
        "2 in 1 layers, 1 in 1 layers",
        "b: disk is slow",
        "",
        "attention replica  table version",
        "w                  6",
        "x                  7",
    ]


def test_full_map_is_shown_when_asked_for() -> None:
    lines = status_text([RunStatus(RECORD, STATES, KNOWN)], experts=True).splitlines()
    assert lines[-7:] == [
        "experts of a",
        "  layer 0: 0-3",
        "  layer 1: 0-3",
        "",
        "experts of b",
        "  layer 0: 4-5",
        "  layer 1: 5",
    ]


def test_what_is_not_known_is_told_with_what_is() -> None:
    text = status_text([RunStatus(RECORD, STATES, problem="the controller did not answer")])
    assert text.splitlines()[1] == "NOT KNOWN: the controller did not answer"
    assert "Controller   HEALTHY" in text


def test_incomplete_table_and_what_it_waits_for_are_told() -> None:
    known = ControllerStatus(0, False, 0, "shards: 0 of 2 have reported", (), {})
    text = status_text([RunStatus(RECORD, (), known)])
    assert text.splitlines()[-2:] == [
        "table version 0, INCOMPLETE: some experts have no replica, redundancy 0, "
        "waiting for shards: 0 of 2 have reported",
        "load: no traffic, no moves under way",
    ]


def test_programs_get_all_of_it() -> None:
    [one, two] = json.loads(
        status_json([RunStatus(RECORD, STATES, KNOWN), RunStatus(RECORD, problem="no answer")])
    )["runs"]
    assert (one["name"], one["ready"], one["pid"]) == ("one", True, 7)
    assert one["deployments"][1]["status"] == "UPDATING"
    assert one["controller"]["shards"][0]["held"] == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert one["controller"]["readers"] == {"x": 7, "w": 6}
    assert (two["controller"], two["problem"]) == (None, "no answer")


@pytest.mark.parametrize(
    ("experts", "shown"),
    [
        ([], "none"),
        ([3], "3"),
        ([2, 0, 1], "0-2"),
        ([0, 2, 4, 5], "0, 2, 4-5"),
    ],
)
def test_experts_are_ranges(experts: list[int], shown: str) -> None:
    assert compact(experts) == shown


@pytest.mark.parametrize(
    ("held", "shown"),
    [
        ((), "none"),
        (((), ()), "none"),
        (((1, 0), (0, 1)), "0-1 of every layer"),
        (((0, 1), (2, 3)), "2 of each layer, not the same ones"),
        (((0, 1), (0,), (1,)), "2 in 1 layers, 1 in 2 layers"),
    ],
)
def test_what_a_shard_holds_is_short(held: tuple[tuple[int, ...], ...], shown: str) -> None:
    assert describe_held(held) == shown


@pytest.mark.parametrize(
    ("n_bytes", "shown"), [(0, "0.0 MiB"), (3 * MIB // 2, "1.5 MiB"), (1024 * MIB, "1.00 GiB")]
)
def test_bytes_have_a_unit_that_suits_them(n_bytes: int, shown: str) -> None:
    assert size(n_bytes) == shown
