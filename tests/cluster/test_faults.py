"""Real processes die under load, and nobody who waits for an answer notices more than a pause."""

from typing import Any

import pytest

from tests.cluster.conftest import Applications

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1000)]

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(applications: Applications, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A shard killed, one stopped for a while, the controller killed, each under six streams."""
    application = applications.twice()
    words = ("--scenarios", "kill,stop,controller", "--requests", "6", "--max-tokens", "80")
    return application.bench_faults(tmp_path_factory.mktemp("faults") / "faults.json", *words)


@pytest.mark.parametrize("scenario", ["undisturbed", "kill", "stop", "controller"])
def test_no_request_fails(results: Results, scenario: str) -> None:
    result = results[scenario]
    assert (result["sent"], result["failed"]) == (6, 0), result["errors"]


def test_a_killed_shard_is_noticed_by_its_connection_not_by_waiting(results: Results) -> None:
    # a second on a machine of one's own; what is told apart here is the deadline for answers
    assert results["kill"]["longest_stall_s"] < 5


def test_a_stopped_shard_is_left_at_its_deadline(results: Results) -> None:
    assert 2 <= results["stop"]["longest_stall_s"] < 10


@pytest.mark.parametrize("scenario", ["kill", "stop", "controller"])
def test_everything_is_whole_again_and_nobody_did_anything(results: Results, scenario: str) -> None:
    assert results[scenario]["whole_again_s"] is not None
