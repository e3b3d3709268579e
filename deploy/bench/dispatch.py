"""`bench dispatch`: where one layer's time goes between attention and pool, with real shards.

This process is the attention side, without a model: rows are random, experts are drawn by
log-normal popularity as in `bench router`. Shards are processes of their own with vLLM's kernels,
or with plain torch's (`bare`).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.bench.bare import BareSizes
from deploy.bench.report import Circumstances, describe, markdown_table
from deploy.bench.router import draw
from deploy.bench.throughput_report import Model
from deploy.progress import Progress
from router.choose import Policy
from router.errors import EngineError
from router.table import ReplicaTable, ShardAddress, ShardId, table_of
from services.attention.feed import TableFeed, WorkerReport
from services.attention.layer_times import LayerTimes
from services.attention.remote_pool import RemotePool
from services.attention.settings import RemoteSettings
from services.checkpoint import read_checkpoint
from services.checkpoint_config import n_experts, n_experts_per_token
from services.forking.launch import start_fork_server
from services.transport.sockets import SocketLink

SIGMA = 0.7
WARM_UP_STEPS = 5
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class DispatchOptions:
    """What is measured. model: with vLLM's kernels, or sizes alone, on `device`."""

    model: Model | BareSizes
    dtype: str
    device: str
    shards: tuple[int, ...]  # sizes of the pools
    tokens: tuple[int, ...]  # of a step
    steps: int  # of each size; every layer of each counts


@dataclass(frozen=True, slots=True)
class Split:
    """Microseconds of a layer, medians over steps. The parts add up to about the whole."""

    shards: int
    tokens: int
    layer: float
    choose: float  # a shard for every (token, choice), and who gets what
    send: float  # packing and sending
    shared: float  # counting; a model's shared experts would run here
    queue: float  # of the shard that took longest: before it computed
    compute: float  # of the same: its experts
    idle: float  # the rest of the wait: messages under way, waking up, taking answers in; below
    # zero where the shard was at it before the sender came to wait
    combine: float
    beyond: float  # the layer without that shard's computing


@dataclass(frozen=True, slots=True)
class DispatchReport:
    """What is written."""

    benchmark: str
    circumstances: Circumstances
    model: str
    dtype: str
    hidden: int
    experts: int
    choices: int
    splits: tuple[Split, ...]


def measure_dispatch(
    options: DispatchOptions, around: Circumstances, progress: Progress
) -> DispatchReport:
    """All sizes. Raises EngineError if a shard does not start."""
    torch.set_num_threads(1)
    name, hidden, experts, choices = _sizes(options.model)
    splits: list[Split] = []
    with tempfile.TemporaryDirectory(prefix="expertmesh-dispatch-") as folder:
        is_bare = isinstance(options.model, BareSizes)
        python = Path(sys.executable) if is_bare else start_fork_server(Path(folder))
        for n_shards in options.shards:
            with ExitStack() as stack:
                with progress.step(f"{n_shards} shards: starting"):
                    table = stack.enter_context(
                        running_shards(
                            python, options, n_shards, experts, Path(folder, f"{n_shards}")
                        )
                    )
                for n_tokens in options.tokens:
                    steps = make_steps(around.seed, options, n_tokens, experts, choices, hidden)
                    split = measure(table, steps)
                    splits.append(split)
                    progress.say(
                        f"{n_shards} shards, {n_tokens} tokens: layer {split.layer:.0f} µs, "
                        f"beyond the experts' computing {split.beyond:.0f} µs"
                    )
    return DispatchReport(
        "dispatch",
        around,
        name,
        options.dtype,
        hidden,
        experts,
        choices,
        tuple(splits),
    )


def _sizes(model: Model | BareSizes) -> tuple[str, int, int, int]:
    """A name; hidden size, experts of a layer, choices of a token."""
    if isinstance(model, BareSizes):
        return "experts in plain torch", model.hidden, model.experts, model.choices
    config = read_checkpoint(model.folder).config
    hidden = int(config.get("text_config", config)["hidden_size"])
    return model.name, hidden, n_experts(config), n_experts_per_token(config)


@dataclass(frozen=True, slots=True)
class Step:
    """What the gate and the layers before it would hand over."""

    rows: torch.Tensor  # [T, H]
    ids: torch.Tensor  # [T, K] int32
    weights: torch.Tensor  # [T, K] float32


def make_steps(
    seed: int, options: DispatchOptions, n_tokens: int, experts: int, choices: int, hidden: int
) -> list[Step]:
    """`options.steps` of them, and some to warm up."""
    rng = np.random.default_rng(seed)
    dtype = getattr(torch, options.dtype)
    popularity = np.exp(SIGMA * rng.normal(size=experts))
    steps = []
    for _ in range(WARM_UP_STEPS + options.steps):
        ids = draw(rng, popularity, n_tokens, choices)
        rows = rng.normal(size=(n_tokens, hidden)).astype(np.float32)
        weights = np.full((n_tokens, choices), 1 / choices, np.float32)
        steps.append(
            Step(
                torch.from_numpy(rows).to(options.device, dtype),
                torch.from_numpy(ids).to(options.device),
                torch.from_numpy(weights).to(options.device),
            )
        )
    return steps


def measure(table: ReplicaTable, steps: Sequence[Step]) -> Split:
    """Medians over all steps but the first ones, each divided by its layers.

    The pool notes a layer's times while the next one's rows are away, so only a step's are whole.
    """
    settings = RemoteSettings(
        "", "bench", reply_timeout_s=60, give_up_s=60, policy=Policy.LEAST_TOKENS
    )
    pool = RemotePool(settings, cast(TableFeed, FixedTable(table)), SocketLink(host="bench"))
    pool.wait_until_complete(table.n_layers)
    names = [field.name for field in fields(LayerTimes)]
    taken = []
    for number, step in enumerate(steps):
        before, began_s = asdict(pool.times), time.perf_counter()
        for layer in range(table.n_layers):
            pool.compute(layer, step.rows, step.weights, step.ids, meanwhile=lambda: None)
            if step.rows.is_cuda:
                torch.cuda.synchronize()
        whole_s = time.perf_counter() - began_s
        if number >= WARM_UP_STEPS:
            after = asdict(pool.times)
            taken.append([whole_s, *(after[name] - before[name] for name in names)])
    pool.link.close()
    of_layer = np.array(taken).T * 1e6 / table.n_layers
    times = dict(zip(["whole", *names], of_layer, strict=True))
    waited = times["wait_s"] + times["shared_s"]
    idle = waited - times["shard_queue_s"] - times["shard_compute_s"]

    def median(of: NDArray[np.float64]) -> float:
        return float(np.median(of))

    return Split(
        shards=len(table.shards),
        tokens=steps[0].ids.shape[0],
        layer=median(times["whole"]),
        choose=median(times["choose_s"]),
        send=median(times["send_s"]),
        shared=median(times["shared_s"]),
        queue=median(times["shard_queue_s"]),
        compute=median(times["shard_compute_s"]),
        idle=median(idle),
        combine=median(times["combine_s"]),
        beyond=median(times["whole"] - times["shard_compute_s"]),
    )


class FixedTable:
    """In the place of a `TableFeed`: one table, and nobody who hears reports."""

    def __init__(self, table: ReplicaTable) -> None:
        self._table: ReplicaTable | None = table

    def poll(self) -> ReplicaTable | None:
        """The table, once."""
        table, self._table = self._table, None
        return table

    def wait(self, timeout_s: float) -> ReplicaTable | None:
        """As `poll`."""
        return self.poll()

    def report(self, report: WorkerReport) -> None:
        """Nothing."""


@contextmanager
def running_shards(
    python: Path, options: DispatchOptions, count: int, experts: int, folder: Path
) -> Iterator[ReplicaTable]:
    """Shards that hold every expert once, in turn. Raises EngineError if one does not start."""
    with ExitStack() as stack:
        started = []
        for shard in range(count):
            held = ",".join(str(expert) for expert in range(shard, experts, count))
            if isinstance(options.model, BareSizes):
                begin = ["deploy.bench.bare", options.model, options.dtype, options.device]
            else:
                begin = ["deploy.bench.shard", options.model.folder, options.dtype]
            process = subprocess.Popen(
                [python, "-m", *map(str, (*begin, f"s{shard}", folder, held))],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            started.append(process)
        described = [_address(process) for process in started]
        layers = described[0].pop("n_layers")
        held_by = np.zeros((count, layers, experts), np.bool_)
        for shard in range(count):
            held_by[shard, :, shard::count] = True
        addresses = tuple(
            ShardAddress(ShardId(d["shard_id"]), d["host"], d["ipc_endpoint"]) for d in described
        )
        yield table_of(1, addresses, held_by)


def _address(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b'{"shard_id"'):
            return dict(json.loads(line))
    raise EngineError("a shard of the benchmark ended before it listened")


def text_of(report: DispatchReport) -> str:
    """A table, with what must be known to repeat it."""
    head = ("shards", "tokens", *(field.name for field in fields(Split)[2:]))
    rows = [tuple(f"{value:.0f}" for value in astuple(split)) for split in report.splits]
    about = (
        f"model     {report.model}, {report.dtype}, {report.experts} experts, top "
        f"{report.choices}, hidden size {report.hidden}; µs a layer, medians"
    )
    return f"{describe(report.circumstances)}\n{about}\n\n{markdown_table(head, rows, labels=0)}"
