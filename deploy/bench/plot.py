"""`bench plot`: how cost grows, drawn from what `bench dispatch` and `bench router` wrote."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from deploy.bench.router import NEW_TABLE, PLACEMENT
from router.errors import ConfigError

Points = dict[str, list[tuple[float, float]]]  # of each curve, by its name: x, y
WIDTH, HEIGHT = 11.0, 8.0  # inches
MARKERS = "osv^Dx*P"


def plot_costs(dispatch: Path, router: Path, png: Path) -> None:
    """Four panels. Raises ConfigError if a result is not there or matplotlib is not installed."""
    splits, costs = _read(dispatch)["splits"], _read(router)["costs"]
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ConfigError(
            "matplotlib is not installed: pip install matplotlib, or make setup."
        ) from error
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(WIDTH, HEIGHT), layout="constrained")
    by_shards, by_tokens, placing, table = curves(splits, costs)
    for panel, title, x, y, points in (
        (
            panels[0, 0],
            "Beyond the experts' computing",
            "tokens of a step",
            "µs a layer",
            by_shards,
        ),
        (panels[0, 1], "Beyond the experts' computing", "shards", "µs a layer", by_tokens),
        (panels[1, 0], "Placing 61 layers, redundancy 2", "shards", "seconds", placing),
        (panels[1, 1], "The table of 61 layers", "slots of a layer", "MiB, or ms", table),
    ):
        for marker, (name, curve) in zip(MARKERS, points.items(), strict=False):
            panel.plot(*zip(*sorted(curve), strict=True), marker=marker, label=name)
        panel.set(title=title, xlabel=x, ylabel=y, xscale="log", yscale="log")
        panel.grid(alpha=0.3)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        panel.legend(fontsize="small")
    figure.savefig(png, dpi=110)
    pyplot.close(figure)


def curves(
    splits: list[dict[str, Any]], costs: list[dict[str, Any]]
) -> tuple[Points, Points, Points, Points]:
    """What the four panels show."""
    by_shards: Points = defaultdict(list)
    by_tokens: Points = defaultdict(list)
    placing: Points = defaultdict(list)
    table: Points = defaultdict(list)
    for split in splits:
        by_shards[f"{split['shards']} shards"].append((split["tokens"], split["beyond"]))
        by_tokens[f"{split['tokens']} tokens"].append((split["shards"], split["beyond"]))
    for cost in costs:
        if cost["what"] == PLACEMENT:
            placing[f"{cost['experts']} experts"].append((cost["shards"], cost["seconds"]))
        if cost["what"] == NEW_TABLE:
            of = f"{cost['shards']} shards"
            table[f"MiB, {of}"].append((cost["slots"], cost["table_bytes"] / 2**20))
            table[f"ms to make it, {of}"].append((cost["slots"], 1e3 * cost["seconds"]))
    return by_shards, by_tokens, placing, table


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file}: {error}. Write it with python -m deploy bench dispatch, or bench router."
        ) from error
