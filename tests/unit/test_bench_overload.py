"""What `bench overload` makes of its streams."""

from pathlib import Path

import pytest

from deploy.bench.load import Stream
from deploy.bench.overload import OverloadReport, plot, summarise, text_of
from deploy.bench.report import circumstances


def stream(error: str = "", ttft_s: float = 0.2) -> Stream:
    arrivals = () if error else (10.0 + ttft_s, 10.5)
    return Stream("p", "t", 0 if error else 20, 10.0, arrivals, error)


def test_those_who_were_refused_are_told_from_those_who_failed(tmp_path: Path) -> None:
    streams = [
        *(stream(ttft_s=ttft_s) for ttft_s in (0.1, 0.2, 0.3)),
        stream("status 503: full"),
        stream("status 429: too many"),
        stream("status 500: broken"),
    ]
    seen_bytes = [size * 2**20 for size in (500, 990, 1024, 1000)]
    step = summarise(4.0, 8.0, streams, 5.0, seen_bytes)
    assert (step.sent, step.refused, step.failed) == (6, 2, 1)
    assert step.tokens_per_s == 3 * 20 / 5
    assert step.ttft_p50_s == pytest.approx(0.2)
    assert step.errors == ("status 500: broken",)
    assert (step.resident_bytes, step.grown_bytes) == (2**30, 10 * 2**20)
    report = OverloadReport("overload", circumstances(0, ["bench"]), "app", 2.0, (step,))
    assert "| 4 | 8.00 | 6 | 2 | 1 | 12.0 | 200 |" in " ".join(text_of(report).split())
    assert "4: status 500: broken" in text_of(report)
    plot(report, tmp_path / "overload.png")
    assert (tmp_path / "overload.png").stat().st_size > 1000
