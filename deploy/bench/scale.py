"""Load that grows eightfold and falls back, on a running application that scales itself.

What came of it is counted and drawn by `scale_report`.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from deploy.bench.application import RunningApplication
from deploy.bench.load import Stream, open_client, send_at_rate
from deploy.bench.report import Circumstances, write_json
from deploy.bench.scale_report import Look, Phase, ScaleReport, summarise
from deploy.progress import Progress
from router.errors import ConfigError, PlatformError
from services.ray_session import deployment_states

log = logging.getLogger(__name__)

LOOK_S = 1.0
MAX_CONNECTIONS = 500


@dataclass(frozen=True, slots=True)
class ScaleOptions:
    """What the words ask for. Phases follow each other without a pause."""

    rates: tuple[float, ...]  # requests a second in each phase, whatever becomes of them
    phase_s: tuple[float, ...]
    max_tokens: int
    json_file: Path
    png_file: Path


def measure_scale(
    app: RunningApplication, options: ScaleOptions, around: Circumstances, progress: Progress
) -> ScaleReport:
    """Run the phases and write both files. Raises ConfigError if the application does not scale."""
    if not app.status().scaling:
        raise ConfigError(
            f"{app.name} does not scale itself: start it with pool.autoscaling or "
            "attention.autoscaling set."
        )
    phases, looks = asyncio.run(_run(app, options, progress))
    report = summarise(around, app.name, phases, looks)
    write_json(options.json_file, report)
    return report


async def _run(
    app: RunningApplication, options: ScaleOptions, progress: Progress
) -> tuple[list[Phase], list[Look]]:
    looks: list[Look] = []
    stop = asyncio.Event()
    began_s = time.monotonic()
    watching = asyncio.create_task(_watch(app, looks, stop, began_s))
    sent: list[list[asyncio.Task[Stream]]] = []
    times_s = [0.0]
    try:
        async with open_client(app.url, clients=MAX_CONNECTIONS) as client:
            for rate, seconds in zip(options.rates, options.phase_s, strict=True):
                with progress.step(f"{rate:g} requests a second for {seconds:.0f} s"):
                    sent.append(
                        await send_at_rate(
                            client,
                            model=app.model,
                            max_tokens=options.max_tokens,
                            rate=rate,
                            seconds=seconds,
                        )
                    )
                times_s.append(time.monotonic() - began_s)
            done = [tuple(await asyncio.gather(*tasks)) for tasks in sent]
    finally:
        stop.set()
        await watching
    phases = zip(options.rates, times_s, times_s[1:], done, strict=False)
    return [Phase(rate, start, end, began_s, of) for rate, start, end, of in phases], looks


async def _watch(
    app: RunningApplication, looks: list[Look], stop: asyncio.Event, began_s: float
) -> None:
    while not stop.is_set():
        try:
            looks.append(await asyncio.to_thread(_look, app, began_s))
        except PlatformError as error:
            log.warning("not seen: %s", error)
        await asyncio.sleep(LOOK_S)


def _look(app: RunningApplication, began_s: float) -> Look:
    """Serve's replicas, those that start or stop included, and what the controller says."""
    count = {state.name: state.replicas for state in deployment_states(app.name)}
    known = app.status()
    return Look(
        at_s=time.monotonic() - began_s,
        shards=count.get("ExpertShard", 0),
        serving_shards=sum(shard.state == "serving" for shard in known.shards),
        replicas=sum(n for name, n in count.items() if name.startswith("AttentionServer")),
        redundancy=known.redundancy,
        scaling=known.scaling,
    )
