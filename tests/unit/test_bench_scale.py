"""What `bench scale` makes of its looks and streams."""

import argparse
from pathlib import Path

import pytest

from deploy.bench.load import Stream
from deploy.bench.report import circumstances
from deploy.bench.scale_report import Look, Phase, plot, shard_seconds, summarise, text_of
from deploy.bench.scale_words import add_options, scale_options
from router.errors import ConfigError

LOOKS = [
    Look(at_s, shards, shards, 1, 2, (f"shards: {shards} wanted, reasons",))
    for at_s, shards in ((0.0, 2), (10.0, 4), (20.0, 4), (30.0, 2), (40.0, 2))
]


def stream(started_s: float, error: str = "") -> Stream:
    return Stream("p", "text", 10, started_s, (started_s + 0.5, started_s + 1.0), error)


PHASES = [
    Phase(0.1, 0.0, 20.0, 100.0, (stream(100.0), stream(101.0))),
    Phase(0.8, 20.0, 40.0, 100.0, (stream(120.0), stream(121.0, "status 503"))),
]


def test_each_count_holds_until_the_next_look() -> None:
    assert shard_seconds(LOOKS) == 2 * 10 + 4 * 20 + 2 * 10


def test_the_ratio_is_to_a_pool_of_the_most_shards() -> None:
    report = summarise(circumstances(0, []), "app", PHASES, LOOKS)
    assert (report.most_shards, report.shard_seconds, report.ratio) == (4, 120.0, 0.75)
    assert report.failed == 1
    assert [p.failed for p in report.phases] == [0, 1]
    assert [p.tokens_per_s for p in report.phases] == [1.0, 0.5]
    assert report.ttft[2] == (20.0, 0.5)
    text = text_of(report)
    assert "0.75 of a pool that always has 4" in text
    assert "10 s  4 shards, 1 replicas; shards: 4 wanted, reasons" in text
    assert "status 503" in text


def test_it_is_drawn(tmp_path: Path) -> None:
    plot(summarise(circumstances(0, []), "app", PHASES, LOOKS), tmp_path / "scale.png")
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("words", [["--rates", "1,8"], ["--phases", "1,x,2"], ["--rates", "a"]])
def test_words_that_do_not_fit_are_refused(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    with pytest.raises(ConfigError, match="--rates"):
        scale_options(parser.parse_args(words))
