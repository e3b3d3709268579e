"""What a gateway counts: requests by route and outcome, and how long they took. Not thread-safe."""

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from monitoring.metrics import METRICS
from monitoring.totals import Account, Key, number

REQUESTS = "expertmesh_requests_total"
ROUTES = (
    *("chat", "completions", "responses", "messages", "embeddings", "tokens", "models"),
    "other",
)
MOMENTS = ("before_answer", "in_stream")
OUTCOMES = ("ok", "rejected", "client_error", "server_error", "cancelled")
REJECTED = (401, 403, 429)


class Histogram:
    """Counts by bucket and the sum, in plain lists: an observation allocates nothing."""

    def __init__(self, name: str) -> None:
        """name: of a declared histogram."""
        self._bounds = METRICS[name].buckets
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count one value, so many times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def totals(self) -> NDArray[np.float64]:
        """[buckets + 2]: counts by bucket, the last for +Inf; the sum."""
        return np.array([*self._counts, self._sum], np.float64)


class Meter:
    """One gateway process's requests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self._requests = {(route, outcome): 0 for route in ROUTES for outcome in OUTCOMES}
        self._ttft = Histogram("expertmesh_ttft_seconds")
        self._duration = Histogram("expertmesh_request_seconds")
        self._takeovers = dict.fromkeys(MOMENTS, 0)
        self._in_flight = 0

    def began(self, route: str) -> "Call":
        """A request has come; whoever passes it on must end the call. route: one of ROUTES."""
        self._in_flight += 1
        return Call(self, route if route in ROUTES else "other", self._clock())

    def took_over(self, *, in_stream: bool) -> None:
        """A request goes on with another attention replica."""
        self._takeovers[MOMENTS[in_stream]] += 1

    def refused(self, by_route: Mapping[str, int]) -> None:
        """So many were refused before they came here, at once. by_route: keys are of ROUTES."""
        for route, count in by_route.items():
            if route in ROUTES:
                self._requests[route, self.outcome_of(503)] += count
                self._duration.observe(0.0, count)

    @staticmethod
    def outcome_of(status: int) -> str:
        """The outcome of an answer with this HTTP status."""
        if status in REJECTED:
            return "rejected"
        if status >= 500:
            return "server_error"
        return "client_error" if status >= 400 else "ok"

    @property
    def n_requests(self) -> tuple[int, int]:
        """How many have ended, and how many are under way."""
        return sum(self._requests.values()), self._in_flight

    def account(self, source: str, waiting: int = 0) -> Account:
        """What to tell the controller. source: names this process; waiting: requests, now."""
        totals: dict[Key, NDArray[np.float64]] = {
            (REQUESTS, *key): number(count) for key, count in self._requests.items()
        }
        for moment, count in self._takeovers.items():
            totals["expertmesh_takeovers_total", moment] = number(count)
        totals["expertmesh_ttft_seconds",] = self._ttft.totals()
        totals["expertmesh_request_seconds",] = self._duration.totals()
        states: dict[Key, NDArray[np.float64]] = {
            ("expertmesh_requests_in_flight",): number(self._in_flight),
            ("expertmesh_requests_waiting",): number(waiting),
        }
        return Account("gateway", source, self._clock() - self._began_s, totals, states)

    def _first_token(self, began_s: float) -> None:
        self._ttft.observe(self._clock() - began_s)

    def _ended(self, route: str, outcome: str, began_s: float) -> None:
        self._in_flight -= 1
        self._requests[route, outcome] += 1
        self._duration.observe(self._clock() - began_s)


class Call:
    """One request."""

    def __init__(self, meter: Meter, route: str, began_s: float) -> None:
        self._meter = meter
        self._route = route
        self._began_s = began_s
        self._has_token = False
        self._has_ended = False

    def first_token(self) -> None:
        """Something of the answer goes to the client; only the first call counts."""
        if not self._has_token:
            self._has_token = True
            self._meter._first_token(self._began_s)

    def ended(self, outcome: str) -> None:
        """It is over; only the first call counts. outcome: one of OUTCOMES."""
        if not self._has_ended:
            self._has_ended = True
            self._meter._ended(self._route, outcome, self._began_s)
