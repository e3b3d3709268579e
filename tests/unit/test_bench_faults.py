"""What `bench faults` makes of what it saw, and what it refuses."""

import io
import math

import pytest

from deploy.bench.faults_report import FaultReport, summarise, text_of
from deploy.bench.load import Stream
from deploy.bench.report import circumstances
from deploy.bench.shift import Look, p99_while_moving, seconds_until_within
from deploy.cli import main


def stream(prompt: str, text: str, arrivals_s: tuple[float, ...], error: str = "") -> Stream:
    return Stream(prompt, text, len(arrivals_s), 0.0, arrivals_s, error)


CALM = [stream("a", "x", (1.0, 1.1, 1.2)), stream("b", "y", (1.0, 1.1, 1.2))]


def test_a_scenario_is_compared_with_the_undisturbed_run() -> None:
    struck = [
        stream("a", "x", (1.0, 1.1, 1.4)),
        stream("b", "z", (1.0, 1.1), error="status 503: experts"),
    ]
    result = summarise("kill", struck, CALM, whole_again_s=50.0)
    assert (result.sent, result.failed) == (2, 1)
    assert (result.same_text, result.compared) == (1, 2)
    assert result.longest_stall_s == pytest.approx(0.3)
    assert result.p99_ratio == pytest.approx(2.96, abs=0.05)
    assert result.whole_again_s == 50.0
    assert result.errors == ("status 503: experts",)


def test_prompts_that_the_undisturbed_run_did_not_have_are_not_compared() -> None:
    result = summarise("rebalance", [stream("c", "x", (1.0,))], CALM)
    assert (result.sent, result.compared) == (1, 0)


def test_the_table_has_a_line_for_each_scenario_and_a_dash_for_what_does_not_apply() -> None:
    results = (summarise("kill", CALM, CALM, whole_again_s=50.0),)
    report = FaultReport("faults", circumstances(0, ["bench"]), "demo", 3, 2, 6, True, results)
    shown = text_of(report).splitlines()
    assert "served by demo: 3 shards, redundancy 2; 6 clients" in shown
    cells = [cell.strip() for cell in shown[-1].strip("|").split("|")]
    assert cells == ["kill", "2", "0", "2 of 2", "0.10", "1.00", "50.00", "–", "–", "–"]


def test_the_load_has_followed_when_the_imbalance_stays_below_the_limit() -> None:
    looks = [Look(10.0 + i, imbalance, 0) for i, imbalance in enumerate((2, 1.5, 1.0, 1.2, 1.05))]
    assert seconds_until_within(looks, 10.0, 1.1) == 3.0
    assert seconds_until_within(looks, 10.0, 3.0) == 0.0
    assert math.isinf(seconds_until_within(looks, 10.0, 1.01))


def test_gaps_while_experts_move_are_held_against_the_others() -> None:
    looks = [Look(second, 1.0, 5 if 20 <= second < 30 else 0) for second in range(40)]
    calm = stream("a", "", tuple(i * 0.1 for i in range(50)))
    moving = stream("b", "", tuple(22 + i * 0.2 for i in range(20)))
    assert p99_while_moving([calm, moving], looks) == pytest.approx(2.0)
    assert math.isnan(p99_while_moving([calm], looks))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scenarios", "kill,flood"], "'flood' is none; there are kill, stop, controller"),
        (["--shift", "100"], "is not two token ids; write 100,300"),
        (["--requests", "0"], "must be at least 1"),
        (["--name", "none-such"], "one running application is needed, found: none"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], message: str) -> None:
    err = io.StringIO()
    assert main(["bench", "faults", *words], out=io.StringIO(), err=err) == 2
    assert message in err.getvalue()
