"""Panels and queries of the dashboards, apart from what Grafana makes of them.

In an expression `name{…}` is filled with the chosen application's label, and [w] with the window.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["timeseries", "stat", "heatmap", "matrix", "table"]


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression. legend: with {{label}} for each series."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. unit: of Grafana, such as s, percentunit, ops. width: of 24 columns."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    note: str = ""


def sum_rate(metric: str, by: str = "", labels: str = "") -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{labels}…}}[w]))"


def quantiles(metric: str) -> tuple[Query, ...]:
    return tuple(
        Query(f"histogram_quantile({q}, {sum_rate(f'{metric}_bucket', 'le')})", f"p{q * 100:.0f}")
        for q in (0.5, 0.95, 0.99)
    )


def one(expr: str, legend: str = "") -> tuple[Query, ...]:
    return (Query(expr, legend),)


def serve(metric: str) -> tuple[Query, ...]:
    """A series of Ray Serve's, by deployment."""
    return one(f'sum by (deployment) ({metric}{{job="ray"}})', "{{deployment}}")
