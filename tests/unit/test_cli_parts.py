"""What the commands are made of: progress lines, the first request, waiting, signals."""

import io
import json
import signal
from pathlib import Path
from unittest.mock import Mock

import httpx
import pytest

from deploy.first_token import ask_first_token, base_url, example_curl
from deploy.progress import Progress
from deploy.records import Claim
from deploy.signals import Stopped, StopSignals, raise_on_stop_signals, stop_signals_ignored
from deploy.start import Session, wait_until_ready
from router.errors import ConfigError, EngineError
from services.config import DeploymentConfig, load_config


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_step_shows_how_long_it_took() -> None:
    out, clock = io.StringIO(), FakeClock()
    progress = Progress(out, clock=clock, beats=False)
    clock.sleep(2)
    with progress.step("starting Ray"):
        clock.sleep(11)
        progress.beat()
    assert out.getvalue().splitlines() == [
        "[   2.0 s] starting Ray ...",
        "[  13.0 s] starting Ray: still at it after 11 s",
        "[  13.0 s] starting Ray: done in 11.0 s",
    ]


def test_step_that_fails_is_not_called_done() -> None:
    out = io.StringIO()
    with (
        pytest.raises(EngineError),
        Progress(out, clock=FakeClock(), beats=False).step("starting Ray"),
    ):
        raise EngineError("no")
    assert "starting Ray: stopped in 0.0 s" in out.getvalue()


def test_terminal_line_is_written_over() -> None:
    out, clock = Terminal(), FakeClock()
    progress = Progress(out, clock=clock, beats=False)
    with progress.step("reading"):
        clock.sleep(3)
        progress.beat()
    assert out.getvalue() == (
        "\r\033[K[   3.0 s] reading ... 3 s\r\033[K[   3.0 s] reading: done in 3.0 s\n"
    )


def test_beat_outside_a_step_is_silent() -> None:
    out = io.StringIO()
    Progress(out, clock=FakeClock(), beats=False).beat()
    assert out.getvalue() == ""


def config_of(folder: Path, **overrides: object) -> DeploymentConfig:
    return load_config(None, {"model.path": str(folder)} | overrides)


def transport_of(*answers: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[bytes]]:
    """Gives the answers in turn, the last one for ever; notes the bodies it was sent."""
    left, bodies = list(answers), list[bytes]()

    def handle(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, text=answer.text)

    return httpx.MockTransport(handle), bodies


def test_first_token_is_asked_for_until_it_comes(tmp_path: Path) -> None:
    clock = FakeClock()
    transport, bodies = transport_of(
        httpx.ConnectError("refused"), httpx.Response(503), httpx.Response(404), httpx.Response(200)
    )
    ask_first_token(config_of(tmp_path), transport=transport, clock=clock, sleep=clock.sleep)
    assert len(bodies) == 4
    assert json.loads(bodies[0]) == {"model": tmp_path.name, "prompt": "Hello", "max_tokens": 1}


def test_first_token_that_never_comes_ends_with_the_last_answer(tmp_path: Path) -> None:
    clock = FakeClock()
    config = config_of(tmp_path, **{"controller.startup_grace_s": 10})
    transport, _ = transport_of(httpx.Response(503, text="no shard"))
    with pytest.raises(EngineError, match=r"within 10 s .*last: status 503: no shard"):
        ask_first_token(config, transport=transport, clock=clock, sleep=clock.sleep)
    assert clock.now_s == pytest.approx(10, abs=1)


def test_first_request_that_is_refused_is_not_repeated(tmp_path: Path) -> None:
    transport, bodies = transport_of(httpx.Response(400, text="max_tokens is too large"))
    with pytest.raises(ConfigError, match="status 400: max_tokens is too large"):
        ask_first_token(config_of(tmp_path), transport=transport)
    assert len(bodies) == 1


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
    ],
)
def test_url_can_be_reached_from_this_machine(tmp_path: Path, host: str, url: str) -> None:
    settings = {"gateway.host": host, "gateway.keys_file": "keys.yaml"}
    assert base_url(config_of(tmp_path, **settings)) == url


@pytest.mark.parametrize(
    ("address", "url"),
    [("10.1.2.3:6379", "http://10.1.2.3:8000"), ("auto", "http://127.0.0.1:8000")],
)
def test_in_a_cluster_the_api_is_on_its_head(tmp_path: Path, address: str, url: str) -> None:
    settings = {
        "gateway.host": "0.0.0.0",
        "gateway.keys_file": "keys.yaml",
        "ray.address": address,
    }
    assert base_url(config_of(tmp_path, **settings)) == url


def test_example_is_a_chat_only_with_a_chat_template(tmp_path: Path) -> None:
    assert "/v1/completions" in example_curl(config_of(tmp_path))
    (tmp_path / "chat_template.jinja").write_text("x")
    assert "/v1/chat/completions" in example_curl(config_of(tmp_path))


def test_example_survives_a_quote_in_the_name(tmp_path: Path) -> None:
    curl = example_curl(config_of(tmp_path, **{"model.name": "bob's"}))
    assert "bob'\\''s" in curl


class NeverReady:
    def is_ready(self, app: str) -> bool:
        return False

    def app_progress(self, app: str) -> list[str]:
        return ["pool: 1 of 2 shards ready"]


def test_start_that_stands_still_is_given_up() -> None:
    clock, never = FakeClock(), NeverReady()
    progress = Progress(io.StringIO(), clock=clock, beats=False)
    config = load_config(None, {"controller.startup_grace_s": 20})
    claim = Mock(spec=Claim)
    session = Session(never, progress, claim, StopSignals(), clock.sleep)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"changed for 20 s .*waiting for: pool: 1 of 2 shards"):
        wait_until_ready(config, session)


def test_stop_signals_raise_with_their_exit_code(handlers: None) -> None:
    raise_on_stop_signals()
    with pytest.raises(Stopped) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143


def test_ctrl_c_pressed_twice_counts_once(handlers: None) -> None:
    clock = FakeClock()
    raise_on_stop_signals(clock)
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGINT)
    clock.sleep(0.5)
    signal.raise_signal(signal.SIGINT)
    clock.sleep(0.6)
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGINT)


def test_second_ctrl_c_does_not_cut_the_stopping_short(handlers: None) -> None:
    raise_on_stop_signals()
    with stop_signals_ignored():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGINT)
