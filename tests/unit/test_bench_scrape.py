"""The measurement of a scrape, on a small pool."""

import pytest

from deploy.bench import scrape
from deploy.bench.report import circumstances


def test_modes_differ_by_the_series_of_single_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"LAYERS": 2, "EXPERTS": 30, "SHARDS": 3, "SLOTS": 20, "REPLICAS": 2, "REPEATS": 1}
    for name, size in sizes.items():
        monkeypatch.setattr(scrape, name, size)
    report = scrape.measure_scrape(circumstances(0, ["bench", "scrape"]))
    full, top, off = (s.series for s in report.scrapes)
    assert full - off == 2 * 2 * 30
    assert top - off == 2 * 2 * 10
    assert f"| `top` | {top:,} |".replace(" ", "") in scrape.text_of(report).replace(" ", "")
