"""Up to four times the load that an application can carry: what those who are let in notice.

First a closed loop with as many clients as the engines take shows the most that there is to be had;
then requests come at multiples of that rate, whatever becomes of the ones before.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.bench.application import RunningApplication
from deploy.bench.load import (
    PROMPTS,
    Stream,
    closed_loop,
    open_client,
    percentile,
    send_at_rate,
)
from deploy.bench.report import Circumstances, describe, markdown_table, write_json
from deploy.bench.usage import resident_bytes
from deploy.processes import ProcessId
from deploy.progress import Progress
from router.errors import ConfigError

MAX_CONNECTIONS = 2_000
MEMORY_LOOK_S = 15.0  # a look at every page table is not free
CLOSED_LOOP_S = 60.0  # at most, however long the loads last
REFUSED = ("status 503", "status 429")
HEAD = (
    "load", "requests/s", "sent", "refused", "failed", "tokens/s",
    "TTFT p50, ms", "p95", "MiB", "grown",
)  # fmt: skip
SETTLED = 0.25  # of a step's time, after which memory should not grow


@dataclass(frozen=True, slots=True)
class OverloadOptions:
    """What the words ask for."""

    multiples: tuple[float, ...]  # of the most that was carried
    seconds: float  # of each
    clients: int  # of the closed loop
    max_tokens: int
    json_file: Path
    png_file: Path


@dataclass(frozen=True, slots=True)
class Step:
    """One rate. refused: told at once to come again; goodput and times are of those let in."""

    multiple: float
    rate: float
    sent: int
    refused: int
    failed: int
    tokens_per_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    resident_bytes: int  # the most that was seen, all processes
    grown_bytes: int  # from when a quarter of the time was over to the end
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OverloadReport:
    """What is written. carried: requests a second of the closed loop."""

    benchmark: str
    circumstances: Circumstances
    application: str
    carried: float
    steps: tuple[Step, ...]


def measure_overload(
    app: RunningApplication,
    owner: ProcessId,
    options: OverloadOptions,
    around: Circumstances,
    progress: Progress,
) -> OverloadReport:
    """All rates, each when the one before is done. owner: of the application's processes."""
    carried, steps = asyncio.run(_run(app, owner, options, progress))
    report = OverloadReport("overload", around, app.name, carried, tuple(steps))
    write_json(options.json_file, report)
    return report


async def _run(
    app: RunningApplication, owner: ProcessId, options: OverloadOptions, progress: Progress
) -> tuple[float, list[Step]]:
    with progress.step(f"{options.clients} clients, each after its answer: warm-up, and the most"):
        long_s = min(options.seconds, CLOSED_LOOP_S)
        for seconds in (long_s / 3, long_s):
            began_s = time.monotonic()
            done = await closed_loop(
                app.url,
                model=app.model,
                prompts=PROMPTS,
                clients=options.clients,
                max_tokens=options.max_tokens,
                seconds=seconds,
            )
            carried = sum(not s.failed for s in done) / (time.monotonic() - began_s)
    if not carried:
        raise ConfigError(f"no request was answered: {done[0].error}")
    steps = []
    for multiple in options.multiples:
        rate = multiple * carried
        with progress.step(f"{multiple:g} x {carried:.2f} requests a second"):
            steps.append(await _step(app, owner, options, multiple, rate))
    return carried, steps


async def _step(
    app: RunningApplication,
    owner: ProcessId,
    options: OverloadOptions,
    multiple: float,
    rate: float,
) -> Step:
    seen_bytes: list[int] = []

    async def watch_memory() -> None:
        while True:
            seen_bytes.append(await asyncio.to_thread(resident_bytes, owner))
            await asyncio.sleep(MEMORY_LOOK_S)

    watching = asyncio.create_task(watch_memory())
    began_s = time.monotonic()
    try:
        async with open_client(app.url, clients=MAX_CONNECTIONS) as client:
            tasks = await send_at_rate(
                client,
                model=app.model,
                max_tokens=options.max_tokens,
                rate=rate,
                seconds=options.seconds,
            )
            streams = await asyncio.gather(*tasks)
    finally:
        watching.cancel()
    return summarise(multiple, rate, streams, time.monotonic() - began_s, seen_bytes)


def summarise(
    multiple: float,
    rate: float,
    streams: Sequence[Stream],
    took_s: float,
    seen_bytes: Sequence[int],
) -> Step:
    """Count one rate's streams. took_s: until the last one had ended; seen_bytes: in turn."""
    good = [stream for stream in streams if not stream.failed]
    refused = sum(stream.error.startswith(REFUSED) for stream in streams)
    others = {s.error for s in streams if s.error and not s.error.startswith(REFUSED)}
    return Step(
        multiple,
        rate,
        len(streams),
        refused,
        len(streams) - len(good) - refused,
        sum(stream.tokens for stream in good) / took_s,
        percentile([stream.ttft_s for stream in good], 50),
        percentile([stream.ttft_s for stream in good], 95),
        max(seen_bytes),
        seen_bytes[-1] - seen_bytes[int(SETTLED * len(seen_bytes))],
        tuple(sorted(others))[:3],
    )


def text_of(report: OverloadReport) -> str:
    """A table, with what must be known to repeat it."""
    rows = [
        (
            f"{step.multiple:g}",
            f"{step.rate:.2f}",
            *(str(count) for count in (step.sent, step.refused, step.failed)),
            f"{step.tokens_per_s:.1f}",
            *(f"{1e3 * value:.0f}" for value in (step.ttft_p50_s, step.ttft_p95_s)),
            *(f"{n / 2**20:.0f}" for n in (step.resident_bytes, step.grown_bytes)),
        )
        for step in report.steps
    ]
    errors = [f"{step.multiple:g}: {error}" for step in report.steps for error in step.errors]
    lines = [describe(report.circumstances), "", markdown_table(HEAD, rows), *errors]
    return "\n".join(lines)


def plot(report: OverloadReport, png: Path) -> None:
    """Goodput and time to first token over the load."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (goodput, first) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="tight")
    at = [step.multiple for step in report.steps]
    goodput.plot(at, [step.tokens_per_s for step in report.steps], "o-")
    first.plot(at, [step.ttft_p50_s for step in report.steps], "o-", label="p50")
    first.plot(at, [step.ttft_p95_s for step in report.steps], "o-", label="p95")
    goodput.set(xlabel="load, 1 = the most that is carried", ylabel="tokens/s", ylim=(0, None))
    top = max((s.ttft_p95_s for s in report.steps if not math.isnan(s.ttft_p95_s)), default=1.0)
    first.set(xlabel="load", ylabel="first token of those let in, s", ylim=(0, 1.1 * top))
    first.legend()
    for panel in (goodput, first):
        panel.grid(alpha=0.3)
    figure.savefig(png, dpi=110)
    pyplot.close(figure)
