"""A gateway that is full says so once, and the proxy's middleware refuses the next."""

import json
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.config import load_config
from services.gateway.admission import Admission
from services.gateway.edge import Edge
from services.gateway.errors import Refusal
from services.gateway.front import Front
from services.gateway.full import FULL, REFUSED, FullGateways, full, refused_in
from services.gateway.relay import Answers
from services.gateway.settings import gateway_settings
from services.messages import GatewayNews
from services.relayed import Head, RelayedRequest

CHAT = ("POST", "/v1/chat/completions")
MINE = [(b"authorization", b"Bearer em-mine")]
THEIRS = [(b"x-api-key", b"em-theirs")]


def test_others_with_the_key_are_refused_until_the_time_is_over() -> None:
    gateways = FullGateways()
    assert gateways.refuse(*CHAT, MINE, 9.0) is None
    gateways.hear(MINE, full("a", 1, 0.125), 10.0)
    assert gateways.refuse(*CHAT, MINE, 10.1) == pytest.approx(0.025)
    assert gateways.refuse(*CHAT, THEIRS, 10.1) is None, "theirs may push one of mine out"
    assert gateways.refuse(*CHAT, [], 10.1) is None
    assert gateways.refuse(*CHAT, MINE, 10.125) is None


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/metrics"), ("GET", "/health"), ("GET", "/v1/models"), ("POST", "/admin/rebalance"),
     ("POST", "/tokenize"), ("GET", "/v1/chat/completions"), ("POST", "/nowhere")],
)  # fmt: skip
def test_what_asks_for_no_engine_is_not_refused(method: str, path: str) -> None:
    gateways = FullGateways()
    gateways.hear(MINE, full("a", 1, 1.0), 10.0)
    assert gateways.refuse(method, path, MINE, 10.1) is None


def test_all_gateways_must_be_full() -> None:
    gateways = FullGateways()
    gateways.hear(MINE, full("a", 2, 0.5), 10.0)
    assert gateways.refuse(*CHAT, MINE, 10.1) is None
    gateways.hear(MINE, full("b", 2, 0.5), 10.2)
    assert gateways.refuse(*CHAT, MINE, 10.3) == pytest.approx(0.2), "a's time is over first"
    assert gateways.refuse(*CHAT, MINE, 10.6) is None, "a has not said it again"


@pytest.mark.parametrize("told", ["", "a 1", "a 1 x", "a -1 5", "a b 1 5", "a 1 1e9"])
def test_a_header_of_another_shape_says_nothing(told: str) -> None:
    gateways = FullGateways()
    gateways.hear(MINE, told, 10.0)
    assert gateways.refuse(*CHAT, MINE, 10.0) is None


def test_what_was_refused_is_told_once() -> None:
    gateways = FullGateways()
    gateways.hear(MINE, full("a", 1, 1.0), 10.0)
    for path in ("/v1/chat/completions", "/v1/chat/completions", "/v1/messages"):
        gateways.refuse("POST", path, MINE, 10.1)
    told = gateways.counted()
    assert refused_in(told) == {"chat": 2, "messages": 1}
    assert gateways.counted() == []
    assert refused_in([(REFUSED, b"chat=1 x models=-1 =3 \xff=1 tokens=99999999999")]) == {
        "chat": 1
    }


def test_a_door_says_how_long_it_will_be_full() -> None:
    now_s = [0.0]
    door = Admission(max_running=4, max_waiting=0, max_wait_s=0.5, clock=lambda: now_s[0])
    door._running["a"] = 4
    with pytest.raises(Refusal) as refusal:
        door.check("a")
    assert refusal.value.full_s == 0.0, "nobody has left yet: who knows"
    door._pace.took(1.6)  # so one leaves every 0.4 s
    with pytest.raises(Refusal) as refusal:
        door.check("a")
    assert refusal.value.full_s == pytest.approx(0.2)
    door._pace.took(16.0)
    with pytest.raises(Refusal) as refusal:
        door.check("a")
    assert refusal.value.full_s == pytest.approx(0.25), "half of what a request may wait"


async def no_engine(request: RelayedRequest) -> Answers:
    yield Head(500, ())


@pytest.fixture
def front() -> Front:
    config = load_config(None, {"model.path": "m"})
    made = Front(gateway_settings(config), no_engine, {}, gateway_id="g1")
    made.hear(GatewayNews(engines=1), 0.0)
    made.admission.max_running = 0
    made.admission._pace.took(9.0)
    return made


def behind_the_edge(front: Front) -> tuple[httpx.AsyncClient, list[Any]]:
    """A client, and the headers that come to the gateway."""
    seen: list[Any] = []

    async def gateway(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["headers"])
        if scope["path"].startswith("/-/"):
            await Response()(scope, receive, send)
            return
        response = await front.answer(Request(scope, receive))
        await response(scope, receive, send)

    transport = httpx.ASGITransport(Edge(gateway))
    return httpx.AsyncClient(transport=transport, base_url="http://edge"), seen


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/v1/completions", "service_unavailable"), ("/v1/messages", "overloaded_error")],
)
async def test_the_edge_refuses_what_the_gateway_would(front: Front, path: str, kind: str) -> None:
    client, seen = behind_the_edge(front)
    first = await client.post(path, json={}, headers={"x-expertmesh-refused": "chat=5"})
    again = [await client.post(path, json={}, headers={"x-request-id": "me"}) for _ in range(3)]
    assert {one.status_code for one in (first, *again)} == {503}
    assert len(seen) == 1, "the gateway was asked once"
    assert FULL.decode() not in first.headers
    for one in again:
        assert json.loads(one.content)["error"]["type"] == kind
        assert "limits.max_queue_wait_s" in one.text
        assert (one.headers["retry-after"], one.headers["x-request-id"]) == ("1", "me")
    assert front.meter.n_requests == (1, 0), "clients cannot count for others"
    await client.get("/-/healthz")  # Serve's own, which no gateway sees
    assert front.meter.n_requests == (1, 0)
    assert (await client.get("/health")).status_code == 200
    assert front.meter.n_requests == (4, 0), "the next request tells of three"
