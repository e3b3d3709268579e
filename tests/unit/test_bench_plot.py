"""How cost grows: which numbers become which curves, and a picture that is one."""

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.bench.plot import curves, plot_costs
from deploy.bench.router import NEW_TABLE, PLACEMENT
from router.errors import ConfigError


def split(shards: int, tokens: int, beyond: float) -> dict[str, Any]:
    return {"shards": shards, "tokens": tokens, "beyond": beyond}


def cost(what: str, shards: int, seconds: float) -> dict[str, Any]:
    numbers = {"experts": 64, "shards": shards, "slots": 2 * shards, "table_bytes": 2**20}
    return {"what": what, "seconds": seconds, **numbers}


SPLITS = [split(1, 1, 100.0), split(1, 16, 200.0), split(2, 1, 150.0), split(2, 16, 300.0)]
COSTS = [cost(PLACEMENT, 8, 0.5), cost(NEW_TABLE, 8, 0.01), cost("choose", 8, 1e-5)]


def test_each_panel_has_its_curves() -> None:
    by_shards, by_tokens, placing, table = curves(SPLITS, COSTS)
    assert by_shards == {
        "1 shards": [(1, 100.0), (16, 200.0)],
        "2 shards": [(1, 150.0), (16, 300.0)],
    }
    assert by_tokens["16 tokens"] == [(1, 200.0), (2, 300.0)]
    assert placing == {"64 experts": [(8, 0.5)]}
    assert table == {"MiB, 8 shards": [(16, 1.0)], "ms to make it, 8 shards": [(16, 10.0)]}


def test_a_picture_is_written(tmp_path: Path) -> None:
    dispatch, router, png = (tmp_path / name for name in ("d.json", "r.json", "cost.png"))
    dispatch.write_text(json.dumps({"splits": SPLITS}))
    router.write_text(json.dumps({"costs": COSTS}))
    plot_costs(dispatch, router, png)
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_result_that_is_not_there_is_told_with_its_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="python -m deploy bench dispatch"):
        plot_costs(tmp_path / "none.json", tmp_path / "none.json", tmp_path / "cost.png")
