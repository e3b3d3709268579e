"""Has Ray Serve keep as many replicas as the controller wants; who decides is `services.scaler`.

The controller's wish comes to Serve by the replicas themselves: each asks for it with its reports
and tells it as an autoscaling figure, which `follow`, Serve's policy, passes on.
"""

from dataclasses import dataclass
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

WANTED = "wanted"
LOOK_BACK_S = 10.5  # Serve takes a figure every fifth of it, and wants it above ten seconds
ENVIRONMENT = {"RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1"}
"""Of a replica that tells the figure: else Serve hears of it every ten seconds."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Replicas of one deployment; drain_s: how long one that is stopped may take."""

    least: int
    first: int
    most: int
    drain_s: float


def options(bounds: Bounds) -> dict[str, Any]:
    """A deployment's options by which Serve follows. Nothing here waits: the decision has."""
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=bounds.least,
            initial_replicas=bounds.first,
            max_replicas=bounds.most,
            upscale_delay_s=0,
            downscale_delay_s=0,
            look_back_period_s=LOOK_BACK_S,
            policy=AutoscalingPolicy(policy_function=follow),
        ),
        "graceful_shutdown_timeout_s": bounds.drain_s,
        "graceful_shutdown_wait_loop_s": 0.5,
    }


def told(wanted: int) -> dict[str, float]:
    """What a replica answers when Serve asks it for its figures. 0: it has heard nothing yet."""
    return {WANTED: float(wanted)}


def follow(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """The newest wish of the controller; as many as there are until there is one.

    Serve runs it in its own process, where our packages need not be: it uses nothing of them.
    """
    told_by = (context.raw_metrics or {}).get("wanted", {})
    points = [point for series in told_by.values() for point in series if point.value >= 1]
    if not points:
        return context.target_num_replicas, {}
    return round(max(points, key=lambda point: point.timestamp).value), {}
