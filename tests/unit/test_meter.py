"""What a gateway counts."""

import pytest

from monitoring.meter import Meter


class Clock:
    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> Meter:
    return Meter(clock)


def requests(meter: Meter) -> dict[tuple[str, ...], float]:
    totals = meter.account("g").totals
    found = {key[1:]: float(n) for key, n in totals.items() if "requests_total" in key[0]}
    return {key: n for key, n in found.items() if n}


def test_requests_count_by_route_and_outcome_when_they_end(meter: Meter) -> None:
    first, second = meter.began("chat"), meter.began("no such route")
    assert requests(meter) == {}
    assert meter.account("g").states["expertmesh_requests_in_flight",] == 2
    first.ended("ok")
    second.ended("server_error")
    assert requests(meter) == {("chat", "ok"): 1, ("other", "server_error"): 1}
    assert meter.account("g").states["expertmesh_requests_in_flight",] == 0


def test_a_request_ends_once_and_has_one_first_token(meter: Meter, clock: Clock) -> None:
    call = meter.began("chat")
    clock.now_s += 0.25
    call.first_token()
    clock.now_s += 2
    call.first_token()
    call.ended("ok")
    call.ended("cancelled")
    totals = meter.account("g").totals
    assert requests(meter) == {("chat", "ok"): 1}
    ttft, whole = totals["expertmesh_ttft_seconds",], totals["expertmesh_request_seconds",]
    assert (ttft[:-1].sum(), ttft[-1]) == (1, 0.25)
    assert (whole[:-1].sum(), whole[-1]) == (1, 2.25)


def test_every_series_is_there_from_the_start(meter: Meter) -> None:
    assert sum("requests_total" in key[0] for key in meter.account("g").totals) == 40


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        *((200, "ok"), (400, "client_error"), (404, "client_error"), (401, "rejected")),
        *((429, "rejected"), (503, "server_error"), (500, "server_error"), (504, "server_error")),
    ],
)
def test_a_status_has_an_outcome(status: int, outcome: str) -> None:
    assert Meter.outcome_of(status) == outcome


def test_age_is_since_the_meter_began(meter: Meter, clock: Clock) -> None:
    clock.now_s += 3
    assert meter.account("g").age_s == 3
