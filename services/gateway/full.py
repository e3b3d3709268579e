"""What a gateway that is full tells Serve's proxy, so that the next ones are refused there.

A refusal by a gateway costs ten times what one by the proxy's middleware (`edge`) does, and under
overload there are many. So a gateway that refuses for want of room says in a header, which goes no
further, for how long nobody else with this key would be let in; until then the proxy says no
itself, if all gateways have told it so. What it refused is counted by the next gateway that gets a
request.
"""

import re
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

from services.gateway.keys import presented
from services.gateway.routes import POST, ROUTES

FULL = b"x-expertmesh-full"
"""In a refusal: which gateway is full, of how many, and for how many milliseconds at least."""

REFUSED = b"x-expertmesh-refused"
"""In a request: how many the proxy has refused since the last one, by the meter's routes."""

TOLD = re.compile(r"^(\S{1,200}) ([0-9]{1,4}) ([0-9]{1,6})$")
COUNT = re.compile(r"^([a-z]{1,20})=([0-9]{1,9})$")

Header = tuple[bytes, bytes]


def full(gateway_id: str, gateways: int, seconds: float) -> str:
    """The value of `FULL`."""
    return f"{gateway_id} {gateways} {1e3 * seconds:.0f}"


def refused_in(headers: Sequence[Header]) -> dict[str, int]:
    """What the proxy has counted: route → requests."""
    words = dict(headers).get(REFUSED, b"").decode("latin-1").split()
    found = [COUNT.match(word) for word in words]
    return {match[1]: int(match[2]) for match in found if match}


class FullGateways:
    """What one proxy has been told. Plain; the clock is given."""

    def __init__(self) -> None:
        self._until_s: dict[bytes, dict[str, float]] = {}  # by whose requests, and gateway
        self._gateways = 1
        self._refused: Counter[str] = Counter()

    def hear(self, headers: Sequence[Header], told: str, now_s: float) -> None:
        """A gateway is full. headers: of the request; told: the value of `FULL`."""
        if match := TOLD.match(told):
            self._gateways = int(match[2])
            until_s = self._until_s.setdefault(_who(headers), {})
            until_s[match[1]] = now_s + int(match[3]) / 1e3

    def refuse(
        self, method: str, path: str, headers: Sequence[Header], now_s: float
    ) -> float | None:
        """Seconds until room may be there, if a request is to be refused; it counts as such."""
        if not self._until_s:
            return None
        for one in [w for w, until_s in self._until_s.items() if max(until_s.values()) <= now_s]:
            del self._until_s[one]
        route = ROUTES.get(path)
        if route is None or not route.generates or method not in POST:
            return None
        until_s = self._until_s.get(_who(headers), {}).values()
        left_s = [at_s - now_s for at_s in until_s if at_s > now_s]
        if len(left_s) < self._gateways:
            return None
        self._refused[route.meter] += 1
        return min(left_s)

    def counted(self) -> list[Header]:
        """What is to go with the next request; it is told once."""
        if not self._refused:
            return []
        words = " ".join(f"{route}={count}" for route, count in self._refused.items())
        self._refused.clear()
        return [(REFUSED, words.encode())]


def _who(headers: Sequence[Header]) -> bytes:
    return sha256((presented(headers) or "").encode()).digest()
