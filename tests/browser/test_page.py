"""What a person sees on the live page, and can do there."""

import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from services.gateway.keys import digest_of
from tests.browser.conftest import Show, Shown
from tests.support.browser import Browser
from tests.support.scene import EXAMPLE, Scene

WIDE = "document.documentElement.scrollWidth > innerWidth"
PIXEL = (
    "[...document.getElementById('{canvas}').getContext('2d').getImageData({x}, {y}, 1, 1).data]"
)
DRAWN = "new Promise(d => requestAnimationFrame(() => requestAnimationFrame(() => d())))"
COLOUR = "getComputedStyle(document.documentElement).getPropertyValue('--{name}')"
WORDS = "document.getElementById('connection').innerText"
INKS = ("text", "quiet", "good", "warn", "bad")
PAPERS = ("back", "panel", "warn-back", "bad-back")
MESSAGES = 12


def large(**fields: object) -> Scene:
    """As large as the largest models."""
    scene = Scene(61, 384, [f"{1000 + n}-ab{n}" for n in range(16)], tokens_per_s=900)
    for name, value in fields.items():
        setattr(scene, name, value)
    return scene


def pixel(shown: Shown, canvas: str, layer: int, expert: int) -> list[int]:
    """Red, green, blue and alpha in the middle of a cell, when all that is known is drawn."""
    shown.browser.run(DRAWN)
    size = shown.browser.run(
        f"['width', 'height'].map(k => document.getElementById('{canvas}')[k])"
    )
    x = int(size[0] * (expert + 0.5) / shown.scene.experts)
    y = int(size[1] * (layer + 0.5) / shown.scene.layers)
    return list(shown.browser.run(PIXEL.format(canvas=canvas, x=x, y=y)))


def ratios(scene: Scene) -> np.ndarray:
    """[L, E] load over the mean of the layer."""
    rows = scene.popularity
    return np.asarray(rows / rows.mean(axis=1, keepdims=True))


def test_before_traffic_it_says_so(show: Show) -> None:
    shown = show(Scene())
    browser = shown.browser
    assert browser.text("#heat-empty") == "No traffic yet. The map fills with the first request."
    assert shown.level() == "good"
    assert browser.text("#shards").count("serving") == 3
    assert not browser.run("document.getElementById('heat').checkVisibility()")
    assert browser.complaints == []
    shown.scene.tokens_per_s = 10
    browser.wait_for("document.getElementById('heat').checkVisibility()")
    assert "0 to 4.0 times" in browser.text("#scale-text")


def test_while_it_loads_and_without_a_pool_it_says_so(show: Show) -> None:
    shown = show(Scene(shards=[]))
    assert shown.level() == "starting"
    assert shown.browser.text("#level") == "◐ Starting"
    assert shown.browser.text("#shards-empty") == "No shard is there; 3 are wanted."


def test_the_map_shows_each_experts_load(show: Show) -> None:
    shown = show(large())
    wanted = ratios(shown.scene)
    hot = np.unravel_index(wanted.argmax(), wanted.shape)
    cold = np.unravel_index(wanted.argmin(), wanted.shape)
    shown.browser.wait_for("expertmesh.heatmap.draws > 0")
    assert pixel(shown, "heat-cells", *map(int, hot)) == [253, 231, 37, 255]
    red, green, blue, _ = pixel(shown, "heat-cells", *map(int, cold))
    assert blue > green
    assert red < 75
    assert f"0 to {wanted.max():.1f} times" in shown.browser.text("#scale-text")


def test_cells_are_read_with_arrow_keys(show: Show) -> None:
    shown = show(Scene(layers=12, tokens_per_s=10))
    browser = shown.browser
    browser.run("document.getElementById('heat-title').focus()")
    browser.key("Tab")
    assert browser.run("document.activeElement.id") == "heat-marks"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key in ("ArrowRight", "ArrowRight", "PageDown", "ArrowDown", "ArrowDown", "ArrowLeft"):
        browser.key(key)
    browser.wait_for("document.getElementById('readout').innerText.includes('Layer 11, expert 0')")
    browser.key("End")
    browser.wait_for("document.getElementById('readout').innerText.includes('expert 7')")
    times = float(browser.text("#readout").split(": ")[1].split()[0])
    assert times == pytest.approx(ratios(shown.scene)[11, 7], abs=0.02)
    holders = [s for s in shown.scene.shards if 7 in shown.scene.held(s)[11]]
    assert browser.text("#readout").endswith(f"; on {', '.join(holders)}.")


def test_a_shard_shows_what_it_holds(show: Show) -> None:
    shown = show(Scene(layers=3, tokens_per_s=10))
    browser = shown.browser
    browser.wait_for("expertmesh.heatmap.draws > 0")
    held = shown.scene.held("s1")
    inside, outside = held[0][0], next(e for e in range(8) if e not in held[0])
    assert pixel(shown, "heat-cells", 0, outside)[3] == 255
    browser.run("document.querySelectorAll('#shards button')[1].focus()")
    browser.key("Enter", "\r")
    shown.next()
    assert browser.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert pixel(shown, "heat-cells", 0, outside)[3] == 0
    assert pixel(shown, "heat-cells", 0, inside)[3] == 255
    browser.run("document.getElementById('show-all').click()")
    shown.next()
    assert pixel(shown, "heat-cells", 0, outside)[3] == 255


def test_a_lost_shard_is_told_and_its_successor_too(show: Show) -> None:
    shown = show(Scene(tokens_per_s=10))
    browser, scene = shown.browser, shown.scene
    scene.lose("s1")
    browser.wait_for("document.body.dataset.level == 'degraded'")
    assert browser.text("#level") == "▲ Degraded"
    assert "22 experts are below the redundancy of 2." in browser.text("#alert")
    assert "2 of 3 shards there" in browser.text("#alert")
    assert "1 of 2" in browser.text("#tiles")
    assert "s1" not in browser.text("#shards")
    scene.drops["s1"] = 1
    scene.states["s1"] = "loading"
    scene.regain("s1")
    browser.wait_for("document.getElementById('shards').innerText.includes('◐ loading')")
    scene.decision = EXAMPLE  # before what makes it whole: the scene is looked at meanwhile
    scene.states.clear()
    scene.drops.clear()
    browser.wait_for("document.body.dataset.level == 'good'")
    assert not browser.run("document.getElementById('alert').checkVisibility()")
    log = browser.text("#log")
    assert [log.count(f"Table version {n}.") for n in (8, 9)] == [1, 1]
    for line in (
        "Shard s1 is gone.",
        "Shard s1 has come: loading.",
        "Shard s1: loading → serving.",
        "Shard s1 took in layer 0 expert 0, ",
        "Placement accepted, 12 moves (loads): the heaviest shard gets 21% less; max/mean 1.42 →",
    ):
        assert line in log


def test_experts_without_a_replica_are_named_and_marked(show: Show) -> None:
    shown = show(Scene(layers=3, redundancy=1, tokens_per_s=10))
    shown.scene.lose("s1")
    shown.browser.wait_for("document.body.dataset.level == 'unavailable'")
    assert "✖ Some experts cannot be reached" in shown.browser.text("#alert")
    assert "8 experts are without a replica" in shown.browser.text("#alert")
    shown.next()
    missing = [tuple(cell) for cell in np.argwhere(shown.scene.replicas() == 0)]
    assert f"layer {missing[0][0]} expert {missing[0][1]}" in shown.browser.text("#alert")
    for layer in range(3):
        for expert in range(8):
            marked = pixel(shown, "heat-marks", layer, expert)[3] == 255
            assert marked == ((layer, expert) in missing)


def test_it_comes_back_when_the_gateway_does(show: Show) -> None:
    shown = show(Scene(tokens_per_s=10))
    shown.server.stop()
    # All at once: a second later the page says that it connects again.
    shown.browser.wait_for(
        "document.body.dataset.connection == 'lost' "
        f"&& {WORDS}.includes('✖ Disconnected') && {WORDS}.includes('what you see is old') "
        "&& getComputedStyle(document.querySelector('main')).filter != 'none'"
    )
    assert "serving" in shown.browser.text("#shards"), "what was seen last stays"
    shown.server.start()
    shown.next()
    assert shown.connection() == "live"


def test_a_page_that_is_closed_costs_nothing(show: Show) -> None:
    shown = show(Scene())
    assert shown.server.feed.viewers == 1
    shown.browser.open("data:text/html,closed")
    end_s = time.monotonic() + 60
    while shown.server.feed.viewers:
        assert time.monotonic() < end_s
        time.sleep(0.05)
    looks = shown.scene.n_looks
    time.sleep(0.6)
    assert shown.scene.n_looks == looks


def test_a_controller_that_is_away_is_not_a_lost_connection(show: Show) -> None:
    shown = show(Scene(tokens_per_s=10))
    shown.scene.is_up = False
    shown.browser.wait_for("document.body.dataset.connection == 'away'")
    assert "The controller does not answer" in shown.browser.text("#connection")
    shown.scene.is_up = True
    shown.browser.wait_for("document.body.dataset.connection == 'live'")


def test_a_key_is_asked_for_once(show: Show, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    digest = digest_of("em-right")
    file.write_text(f"keys: [{{name: me, sha256: {digest}, scopes: [admin]}}]")
    shown = show(Scene(), keys_file=file)
    browser = shown.browser
    browser.wait_for("document.body.dataset.connection == 'key'")
    assert browser.run("document.activeElement.id") == "key"
    assert browser.run("document.activeElement.type") == "password"
    browser.type("em-wrong")
    browser.key("Enter", "\r")
    browser.wait_for("document.getElementById('key-why').innerText.includes('is not known')")
    browser.type("em-right")
    browser.key("Enter", "\r")
    shown.next()
    assert not browser.run("document.getElementById('key-form').checkVisibility()")
    browser.open(shown.server.url)
    shown.next()
    assert shown.connection() == "live"
    browser.run("sessionStorage.clear()")


def test_the_largest_models_do_not_stutter(show: Show) -> None:
    shown = show(large())
    browser = shown.browser
    browser.wait_for("expertmesh.heatmap.draws > 0")
    browser.count_work()
    busy_s, draws = browser.busy_s(), browser.run("expertmesh.heatmap.draws")
    messages = shown.next(MESSAGES)  # the map, the table and the lines are drawn with each
    each_ms = (browser.busy_s() - busy_s) / messages * 1e3
    each_draws = (browser.run("expertmesh.heatmap.draws") - draws) / messages
    took = np.array(browser.run("expertmesh.heatmap.drawMs"))
    print(f"a message: {each_ms:.1f} ms of CPU, {each_draws:.2f} drawings;", of(took))
    assert each_draws <= 2
    assert each_ms < 34, "two frames of 60 a second"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_it_fits_and_can_be_read(show: Show, width: int, scheme: str, screenshots: Path) -> None:
    shown = show(large(decision=EXAMPLE), width=width)
    browser: Browser = shown.browser
    browser.look(width, scheme=scheme)
    shown.scene.lose("1003-ab3")
    shown.next()
    assert not browser.run(WIDE)
    colours = {name: browser.run(COLOUR.format(name=name)) for name in (*INKS, *PAPERS, "focus")}
    for ink, paper in (*product(INKS, ("back", "panel")), *product(("text",), PAPERS)):
        assert contrast(colours[ink], colours[paper]) >= 4.5, f"{ink} on {paper}"
    assert contrast(colours["focus"], colours["panel"]) >= 3
    browser.screenshot(screenshots / f"page-{width}-{scheme}.png")


def of(times: np.ndarray) -> str:
    """Milliseconds as a person reads them."""
    median, most = np.percentile(times, [50, 95])
    return f"p50 {median:.1f} ms, p95 {most:.1f} ms, longest {times.max():.1f} ms;"


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio of two colours, #rgb or #rrggbb."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    digits = colour.strip().removeprefix("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = np.array([int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
