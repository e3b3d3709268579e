"""`bench throughput`: unmodified vLLM's server and ExpertMesh in turn, A B A B, on the same work.

One server runs at a time, because they share the cores. What is known so far is written after
each of them.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from deploy.bench.engine_ttft import settled_ttft
from deploy.bench.load import Prompt, Stream, closed_loop
from deploy.bench.measure import Measurement, RoundId, measure
from deploy.bench.report import Circumstances, write_json
from deploy.bench.servers import Server, running
from deploy.bench.sides import SIDES, launches_of
from deploy.bench.throughput_report import (
    Model,
    ThroughputOptions,
    ThroughputReport,
    report_of,
    told,
)
from deploy.bench.usage import cpu_between, look_at_cpu, resident_bytes
from deploy.progress import Progress
from services.checkpoint import read_checkpoint

WARM_UP_REQUESTS = 2  # of each client, before a round counts
WARM_UP_TOKENS = 8


class ThroughputRun:
    """One run of the benchmark, and what it has measured so far."""

    def __init__(
        self, options: ThroughputOptions, around: Circumstances, progress: Progress
    ) -> None:
        self._options = options
        self._around = around
        self._progress = progress
        self._measurements: list[Measurement] = []

    def run(self) -> ThroughputReport:
        """Measure everything. Raises EngineError if a server does not start or answers nothing."""
        self._write(is_complete=False)
        with tempfile.TemporaryDirectory(prefix="expertmesh-bench-") as logs:
            for model in self._options.models:
                for pair in range(1, self._options.pairs + 1):
                    for side in SIDES:
                        self._measure_server(model, pair, side, Path(logs) / f"{side}.log")
                        self._write(is_complete=False)
        return self._write(is_complete=True)

    def _measure_server(self, model: Model, pair: int, side: str, log: Path) -> None:
        options, progress = self._options, self._progress
        title = f"{model.name}, pair {pair} of {options.pairs}, {side}"
        launches = launches_of(side, options.engine, model.folder)
        with ExitStack() as stack:
            servers = [
                stack.enter_context(running(launch, log.with_suffix(f".{number}.log")))
                for number, launch in enumerate(launches)
            ]
            try:
                with progress.step(f"{title}: starting"):
                    for server in servers:
                        server.wait_until_ready()
                for clients in options.clients:
                    which = RoundId(model.name, side, pair, clients)
                    with progress.step(f"{title}: {clients} clients"):
                        one = asyncio.run(self._round(which, model.folder, servers))
                    self._measurements.append(one)
                    progress.say(told(one))
            finally:
                progress.say(f"{title}: stopping")

    async def _round(self, which: RoundId, folder: Path, servers: Sequence[Server]) -> Measurement:
        """Warm up, then measure one number of clients, who are dealt out to the servers."""
        options, clients = self._options, which.clients
        count = max(options.requests, options.requests_per_client * clients)
        prompts = random_prompts(
            vocabulary_of(folder), count=count, tokens=options.prompt_tokens, seed=options.seed
        )

        async def send(requests: int, max_tokens: int) -> list[Stream]:
            streams = await asyncio.gather(
                *(
                    closed_loop(
                        server.launch.url,
                        model=server.launch.model,
                        prompts=prompts[number :: len(servers)],
                        clients=_share(clients, number, len(servers)),
                        max_tokens=max_tokens,
                        requests=_share(requests, number, len(servers)),
                    )
                    for number, server in enumerate(servers)
                )
            )
            return [stream for each in streams for stream in each]

        await send(WARM_UP_REQUESTS * clients, min(WARM_UP_TOKENS, options.max_tokens))
        urls = [server.launch.url for server in servers]
        processes = [server.process for server in servers]
        first_tokens = await asyncio.to_thread(settled_ttft, urls)
        before = look_at_cpu(*processes)
        streams = await send(count, options.max_tokens)
        used, resident = cpu_between(before, look_at_cpu(*processes)), resident_bytes(*processes)
        now = await asyncio.to_thread(settled_ttft, urls)
        return measure(
            which,
            streams,
            engine_ttft_s=now.mean_since(first_tokens, len(streams)),
            resident_bytes=resident,
            cpu=used,
            start_s=max(server.start_s for server in servers),
        )

    def _write(self, *, is_complete: bool) -> ThroughputReport:
        report = report_of(self._options, self._around, self._measurements, is_complete=is_complete)
        write_json(self._options.json_file, report)
        return report


def _share(count: int, number: int, among: int) -> int:
    return len(range(number, count, among))


def vocabulary_of(folder: Path) -> int:
    """How many token ids the model has."""
    config = read_checkpoint(folder).config
    return int(config.get("text_config", config)["vocab_size"])


def random_prompts(vocabulary: int, *, count: int, tokens: int, seed: int) -> list[Prompt]:
    """`count` prompts of `tokens` ids from the middle half of the vocabulary.

    Special tokens lie at its two ends.
    """
    low, high = vocabulary // 4, 3 * vocabulary // 4
    ids = np.random.default_rng(seed).integers(low, high, (count, tokens))
    return [[int(each) for each in row] for row in ids]
