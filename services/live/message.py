"""What the page is sent: one look at the controller, and an earlier one, as JSON. Pure.

Two messages: `state`, every second, and `holdings`, which is larger, when it has changed.
"""

import json
from base64 import b64encode
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring.metric import PREFIX
from monitoring.snapshot import Snapshot
from services.live.condition import judge
from services.live.rates import Mark, over_places, per_second, quantile
from services.messages import ControllerStatus, ShardStatus

LEAST_PEAK = 4.0  # so that an even load does not look as if something were the matter


@dataclass(frozen=True, slots=True)
class Look:
    """Everything that the controller said at one moment. at_s: of the monotonic clock."""

    at_s: float
    status: ControllerStatus
    snapshot: Snapshot

    @property
    def mark(self) -> Mark:
        """Its figures."""
        return Mark(self.at_s, self.snapshot.values)


def state_message(look: Look, before: Mark | None, long_before: Mark | None) -> bytes:
    """before: for rates. long_before: for quantiles, which need more requests."""
    status, now, values = look.status, look.mark, look.snapshot.values
    condition = judge(status, look.snapshot)
    imbalance = values.get((f"{PREFIX}layer_imbalance_ratio",))
    decision = status.last_decision
    return _json(
        {
            "level": condition.level,
            "problems": condition.problems,
            "table_version": status.table_version,
            "redundancy": status.redundancy,
            "redundancy_target": _gauge(now, "redundancy_target"),
            "readers": sorted(status.readers.values()),
            "moves_left": status.moves_left,
            "decision": None if decision is None else asdict(decision),
            "scaling": status.scaling,
            "heat": heat(look.snapshot.recent_rows),
            "imbalance": status.imbalance,
            "layer_imbalance": None if imbalance is None else np.round(imbalance, 3).tolist(),
            "output_per_s": per_second(now, before, (f"{PREFIX}output_tokens_total",)),
            "prompt_per_s": per_second(now, before, (f"{PREFIX}prompt_tokens_total",)),
            "ttft_p50_s": quantile(now, long_before, f"{PREFIX}ttft_seconds", 0.5),
            "running": over_places(now, f"{PREFIX}engine_running_requests"),
            "waiting": over_places(now, f"{PREFIX}engine_waiting_requests"),
            "shards_wanted": _gauge(now, "shards_wanted"),
            "shards": _shards(look, before),
        }
    )


def holdings_message(look: Look) -> bytes:
    """Who holds what. `replicas` [L × E] uint8; of each shard the experts, layer after layer."""
    replicas = look.snapshot.values.get((f"{PREFIX}expert_replicas",))
    if replicas is None:
        return _json({"layers": 0, "experts": 0, "replicas": "", "shards": {}})
    layers, experts = replicas.shape
    return _json(
        {
            "layers": layers,
            "experts": experts,
            "replicas": _base64(np.minimum(replicas, 255).astype(np.uint8)),
            "shards": {s.shard_id: _held(s) for s in look.status.shards},
        }
    )


def heat(rows: NDArray[np.float64] | None) -> dict[str, Any] | None:
    """Load of each expert over the mean of its layer, as `peak` × (cell / 255)²; None for none.

    rows: [L, E] of each expert lately. The square leaves enough steps near 1, where most are.
    """
    if rows is None or not rows.any():
        return None
    mean = rows.mean(axis=1, keepdims=True)
    ratios = np.divide(rows, mean, out=np.zeros_like(rows), where=mean > 0)
    peak = max(LEAST_PEAK, float(ratios.max()))
    cells = np.rint(255 * np.sqrt(ratios / peak)).astype(np.uint8)
    layers, experts = rows.shape
    return {"layers": layers, "experts": experts, "peak": peak, "cells": _base64(cells)}


def _shards(look: Look, before: Mark | None) -> list[dict[str, Any]]:
    info = f"{PREFIX}shard_info"
    places = {key[2]: key[1] for key in look.snapshot.values if key[0] == info}
    return [_shard(s, places.get(s.shard_id), look.mark, before) for s in look.status.shards]


def _shard(shard: ShardStatus, place: str | None, now: Mark, before: Mark | None) -> dict[str, Any]:
    def rate(name: str) -> float | None:
        if place is None:
            return None
        return per_second(now, before, (f"{PREFIX}shard_{name}_total", place))

    return {
        "id": shard.shard_id,
        "place": place,
        "host": shard.host[:8],
        "state": shard.state,
        "used": shard.slots_used,
        "slots": shard.slots_total,
        "loading": shard.loading,
        "rows_per_s": rate("rows"),
        "busy_ratio": rate("compute_seconds"),
        "resident_bytes": shard.resident_bytes,
        "weight_bytes": shard.weight_bytes,
    }


def _held(shard: ShardStatus) -> dict[str, Any]:
    experts = [expert for layer in shard.held for expert in layer]
    return {
        "counts": [len(layer) for layer in shard.held],
        "experts": _base64(np.array(experts, "<u2")),
    }


def _gauge(now: Mark, name: str) -> float | None:
    value = now.values.get((f"{PREFIX}{name}",))
    return None if value is None else float(value)


def _base64(cells: NDArray[Any]) -> str:
    return b64encode(cells.tobytes()).decode()


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":"), default=float).encode()
