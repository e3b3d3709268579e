"""One deployment in one process: a gateway, an attention replica with as much of vLLM as carries a

request, and two shards; rows cross real sockets.
"""

import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import torch
from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from router.choose import Policy
from router.table import ShardId, build_table
from services.attention.generation import follow
from services.attention.mark import traceparent_of
from services.attention.remote_pool import RemotePool
from services.attention.serving import Routes
from services.attention.settings import RemoteSettings
from services.attention.steps import Steps
from services.config import load_config
from services.experts.worker import ShardWorker
from services.gateway.front import Front
from services.gateway.settings import gateway_settings
from services.messages import GatewayNews
from services.tracing import Tracing
from services.transport.sockets import SocketLink, SocketPort
from tests.component.test_remote_pool import EXPERTS, HIDDEN, Feed, TimesExpert

LAYERS, LAYER_INTERVAL, STEPS, STEP_INTERVAL = 4, 2, 5, 3


class DeepKernel(TimesExpert):
    n_layers = LAYERS


class Engine:
    """As much of vLLM as carries a request: its HTTP route, its client and its worker's steps."""

    def __init__(self, pool: RemotePool) -> None:
        self._pool = pool
        self.client = SimpleNamespace(generate=self._generate)
        follow(self.client)
        models = SimpleNamespace(base_model_paths=[])
        self.state = SimpleNamespace(openai_serving_models=models)
        self.headers: list[dict[bytes, bytes]] = []
        self.params: list[SamplingParams] = []

    def openapi(self) -> dict[str, Any]:
        return {"info": {"version": "1"}, "paths": {"/v1/completions": {}}}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        self.headers.append(headers)
        body = json.loads((await receive())["body"])
        params = SamplingParams(output_kind=RequestOutputKind.DELTA, extra_args=body.get("xargs"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        name = f"cmpl-{headers[b'x-request-id'].decode()}-0"
        async for output in self.client.generate({"prompt_token_ids": [1, 2]}, params, name):
            await send({"type": "http.response.body", "body": repr(output.outputs).encode()})
        await send({"type": "http.response.body", "body": b""})

    async def _generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        self.params.append(sampling_params)
        name = f"{request_id}-1a2b3c4d"
        new = SimpleNamespace(req_id=name, sampling_params=sampling_params)
        for step in range(STEPS):
            started = [(name, traceparent_of(new))] if step == 0 else []
            with self._pool.steps.step({name: 2}, started=started, finished=()):
                self.run_layers()
            yield RequestOutput(
                name, None, [1, 2], None, [CompletionOutput(0, "x", [step], None, None)], False
            )
        with self._pool.steps.step({}, started=(), finished=[name]):
            pass

    def run_layers(self) -> None:
        x, weights = torch.ones(2, HIDDEN), torch.ones(2, EXPERTS)
        ids = torch.arange(EXPERTS, dtype=torch.int32).repeat(2, 1)
        for layer in range(LAYERS):
            out = self._pool.compute(layer, x, weights, ids, meanwhile=lambda: None)
            assert torch.allclose(out, x * sum(range(1, EXPERTS + 1)))


class Deployment:
    """A gateway, an attention replica and two shards with half of the experts each."""

    def __init__(
        self, run_dir: Path, tracing: Callable[[str], Tracing], *, logs_rows: bool = False
    ) -> None:
        """tracing: makes a process's tracing, given its role."""
        self.workers = [self._shard(name, run_dir, tracing("shard")) for name in ("a", "b")]
        feed = Feed()
        held = [
            (worker.address, {layer: self._experts(n) for layer in range(LAYERS)})
            for n, worker in enumerate(self.workers)
        ]
        feed.tables.append(build_table(1, held, n_layers=LAYERS, n_experts=EXPERTS))
        settings = RemoteSettings("", "test", 5.0, 5.0, Policy.LEAST_TOKENS)
        self.pool = RemotePool(settings, feed, SocketLink(host="test"))  # type: ignore[arg-type]
        self.pool.steps = Steps(
            tracing("engine"),
            step_interval=STEP_INTERVAL,
            layer_interval=LAYER_INTERVAL,
            logs_rows=logs_rows,
        )
        self.pool.wait_until_complete(LAYERS)
        self.engine = Engine(self.pool)
        routes = Routes(
            self.engine,
            is_dead=lambda: False,
            stranded=lambda: None,
            lost_gateways=frozenset,
            deadline_s=5.0,
            tracing=tracing("attention"),
        )
        config = load_config(None, {"model.path": "m"})
        self.front = Front(gateway_settings(config), routes.answer, {}, tracing("gateway"))
        self.front.hear(GatewayNews(engines=1), 0.0)

    def _experts(self, shard: int) -> list[int]:
        return list(range(shard, EXPERTS, 2))

    def _shard(self, name: str, run_dir: Path, tracing: Tracing) -> ShardWorker:
        port = SocketPort(ShardId(name), host="test", run_dir=run_dir)
        worker = ShardWorker(DeepKernel(), port, threads=1, tracing=tracing)
        worker.start()
        for layer in range(LAYERS):
            worker.load(layer, dict(enumerate(self._experts("ab".index(name)))))
        return worker

    async def post(self, traceparent: str = "", **more: Any) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = await self.front.answer(Request(scope, receive))
            await response(scope, receive, send)

        headers = {"traceparent": traceparent} if traceparent else {}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            body = {"model": "m", "prompt": "my secret prompt", **more}
            answer = await http.post("/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text

    def close(self) -> None:
        """End the shards, which have noted everything then."""
        for worker in self.workers:
            worker.stop()
        self.pool.link.close()
