"""`GET /metrics` with a controller in this process."""

import gzip

from starlette.requests import Request
from starlette.responses import Response

from monitoring.snapshot import Snapshot
from monitoring.totals import number
from services.metrics_endpoint import MetricsEndpoint


class Controller:
    def __init__(self) -> None:
        self.is_up = True

    async def metrics(self, timeout_s: float) -> Snapshot:
        if not self.is_up:
            raise TimeoutError("away")
        return Snapshot({("expertmesh_moves_left",): number(4)})


async def ask(controller: Controller, encoding: str = "identity") -> Response:
    endpoint = MetricsEndpoint(controller, per_expert="top")
    headers = [(b"accept-encoding", encoding.encode())]
    return await endpoint.answer(Request({"type": "http", "headers": headers}))


async def test_what_the_controller_knows_is_rendered() -> None:
    answer = await ask(Controller())
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "\nexpertmesh_moves_left 4.0\n" in bytes(answer.body).decode()


async def test_it_is_compressed_for_whoever_can_read_that() -> None:
    plain, packed = await ask(Controller()), await ask(Controller(), "deflate, gzip")
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(bytes(packed.body)) == bytes(plain.body)


async def test_without_the_controller_the_scrape_says_so() -> None:
    controller = Controller()
    controller.is_up = False
    answer = await ask(controller)
    assert answer.status_code == 200
    samples = [
        line for line in bytes(answer.body).decode().splitlines() if not line.startswith("#")
    ]
    assert samples == ["expertmesh_controller_up 0.0"]
