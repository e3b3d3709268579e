"""How `status` prints what runs: aligned text for people, JSON for programs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from deploy.memory import GIB, gib

if TYPE_CHECKING:
    from deploy.ask import RunStatus
    from services.messages import ControllerStatus, DecisionStatus, ShardStatus

HOST_LETTERS = 8  # of a Ray node's id, which has 56; enough to tell machines apart


def status_text(runs: Sequence["RunStatus"], *, experts: bool = False) -> str:
    """Every deployment; with `experts`, which experts each shard holds in each layer."""
    return "\n\n".join("\n".join(_run_lines(run, experts)) for run in runs)


def status_json(runs: Sequence["RunStatus"]) -> str:
    """The same, with the full map of experts, as one object."""
    return json.dumps({"runs": [_run_values(run) for run in runs]})


def compact(experts: Sequence[int]) -> str:
    """Expert numbers as ranges: 0-3, 6."""
    runs = groupby(enumerate(sorted(experts)), key=lambda pair: pair[1] - pair[0])
    ranges = [[expert for _, expert in run] for _, run in runs]
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in ranges) or "none"


def size(n_bytes: int) -> str:
    """Bytes in the unit that suits them."""
    return gib(n_bytes) if n_bytes >= GIB else f"{n_bytes / 1024**2:.1f} MiB"


def describe_held(held: Sequence[Sequence[int]]) -> str:
    """What a shard holds: the experts if all layers have the same, else how many a layer."""
    sets = [sorted(layer) for layer in held]
    if all(layer == sets[0] for layer in sets):
        return f"{compact(sets[0])} of every layer" if sets and sets[0] else "none"
    counts = [(len(list(run)), n) for n, run in groupby(len(layer) for layer in sets)]
    shown = ", ".join(f"{n} in {times} layers" for times, n in counts)
    return f"{counts[0][1]} of each layer, not the same ones" if len(counts) == 1 else shown


def load_line(known: "ControllerStatus") -> str:
    """How evenly the shards are loaded, and what is being done about it."""
    load = "no traffic"
    if known.imbalance is not None:
        load = f"max/mean over shards {known.imbalance:.2f} of the last seconds' rows"
    moves = f"{known.moves_left} moves under way" if known.moves_left else "no moves under way"
    return f"load: {load}, {moves}"


def describe_decision(decision: "DecisionStatus") -> str:
    """Verdict, cause and reason of a placement."""
    verdict = "accepted" if decision.accepted else "refused"
    return (
        f"{verdict}, cause: {decision.cause}; {decision.reason}; {decision.moves} moves, "
        f"max/mean {decision.imbalance_before:.2f} -> {decision.imbalance_after:.2f}"
    )


def _run_lines(run: "RunStatus", experts: bool) -> Iterator[str]:
    record = run.record
    state = "ready" if record.is_ready else "starting"
    ray = f", Ray at {record.address}" if record.address else ""
    yield f"{record.name}: {state}, {record.url}, process {record.owner.pid}{ray}"
    if run.problem:
        yield f"NOT KNOWN: {run.problem}"
    if run.deployments:
        yield ""
        rows = [(state.name, state.status, str(state.replicas)) for state in run.deployments]
        yield from _aligned(("deployment", "status", "replicas"), rows)
        yield from (f"{state.name}: {state.message}" for state in run.deployments if state.message)
    if run.controller is not None:
        yield ""
        yield from _controller_lines(run.controller, experts)


def _controller_lines(known: "ControllerStatus", experts: bool) -> Iterator[str]:
    completeness = "complete" if known.complete else "INCOMPLETE: some experts have no replica"
    waiting = f", waiting for {known.waiting_for}" if known.waiting_for else ""
    yield (
        f"table version {known.table_version}, {completeness}, redundancy {known.redundancy}"
        f"{waiting}"
    )
    yield load_line(known)
    if known.last_decision is not None:
        age_s = known.last_decision.age_s
        yield f"last decision, {age_s:.0f} s ago: {describe_decision(known.last_decision)}"
    yield from (f"scaling, {line}" for line in known.scaling)
    if known.shards:
        yield ""
        head = ("shard", "host", "state", "slots used", "resident", "weights", "read", "experts")
        yield from _aligned(head, [_shard_row(shard) for shard in known.shards])
        yield from (f"{shard.shard_id}: {shard.problem}" for shard in known.shards if shard.problem)
    if known.readers:
        yield ""
        readers = sorted(known.readers.items())
        yield from _aligned(
            ("attention replica", "table version"), [(name, str(n)) for name, n in readers]
        )
    if experts:
        for shard in known.shards:
            yield ""
            yield f"experts of {shard.shard_id}"
            yield from (f"  layer {n}: {compact(held)}" for n, held in enumerate(shard.held))


def _shard_row(shard: "ShardStatus") -> tuple[str, ...]:
    return (
        shard.shard_id,
        shard.host[:HOST_LETTERS],
        f"loading {shard.loading}" if shard.loading else shard.state,
        f"{shard.slots_used} of {shard.slots_total}",
        size(shard.resident_bytes),
        size(shard.weight_bytes),
        size(shard.read_bytes),
        describe_held(shard.held),
    )


def _run_values(run: "RunStatus") -> dict[str, Any]:
    record = run.record
    return {
        "name": record.name,
        "ready": record.is_ready,
        "url": record.url,
        "pid": record.owner.pid,
        "ray_address": record.address,
        "problem": run.problem,
        "deployments": [asdict(state) for state in run.deployments],
        "controller": None if run.controller is None else asdict(run.controller),
    }


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
