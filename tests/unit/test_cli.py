"""The command line against a fake platform: order, messages, exit codes, and what is stopped."""

import contextlib
import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import start as start_module
from deploy import up as up_module
from deploy.processes import this_process
from deploy.records import Claim, RunRecord, find_records
from deploy.signals import Stopped
from deploy.start import Session
from router.errors import EngineError
from services.config import load_config
from tests.support.fake_backend import FakeBackend, run

STARTED = ["ask_vllm", "start_ray", "deploy", "first_token"]
SERVED_AND_STOPPED = [*STARTED, "shutdown"]


@pytest.fixture(autouse=True)
def no_real_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No port is tried, no process looked at; serving ends at once; handlers are put back."""

    def serve_until_ctrl_c(session: Session) -> None:
        session.claim.update(is_ready=True)
        raise Stopped(signal.SIGINT)

    for module in ("deploy.up.check_port", "deploy.preflight.check_port"):
        monkeypatch.setattr(module, lambda host, port: None)
    monkeypatch.setattr("deploy.start.descendants", tuple)
    monkeypatch.setattr("deploy.up.adopt_orphans", lambda: None)
    monkeypatch.setattr("deploy.up.serve", serve_until_ctrl_c)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    handlers = {signum: signal.getsignal(signum) for signum in (2, 15, 1)}
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of 4 experts with two bytes in each."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    config = {"architectures": ["TinyMoe"], "num_experts": 4, "num_experts_per_tok": 2}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    entries = {
        f"model.layers.0.mlp.experts.{expert}.up_proj.weight": {
            "dtype": "BF16",
            "shape": [1],
            "data_offsets": [2 * expert, 2 * expert + 2],
        }
        for expert in range(4)
    }
    header = json.dumps(entries).encode()
    (folder / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(8)
    )
    return folder


def test_up_starts_in_order_and_serves_until_ctrl_c(model: Path) -> None:
    backend = FakeBackend()
    result = run(backend, "up", "--model", str(model))
    assert (result.code, result.err) == (130, "")
    assert backend.asked == SERVED_AND_STOPPED


def test_up_prints_url_and_a_line_to_copy(model: Path) -> None:
    result = run(FakeBackend(), "up", "--model", str(model), "--port", "8123")
    assert 'ready: http://127.0.0.1:8123/v1 serves "tiny". Try:' in result.out
    curl = next(line for line in result.out.splitlines() if line.startswith("curl "))
    assert curl.startswith("curl http://127.0.0.1:8123/v1/chat/completions -H")
    assert json.loads(curl.split("-d ")[1].strip("'"))["model"] == "tiny"


def test_up_says_what_was_worked_out(model: Path) -> None:
    result = run(FakeBackend(), "up", "--model", str(model))
    assert "100% of it in routed experts, 4 a layer, 2 for a token" in result.out
    assert "dtype bfloat16, 4 cores: attention 1 x 2 threads (4 for prompts)" in result.out
    assert "shards 2 x 2 threads, 2 slots a layer" in result.out
    assert "memory: attention replica: 2.20 GiB x 1" in result.out


def test_deployment_gets_the_resolved_config(model: Path) -> None:
    backend = FakeBackend()
    run(backend, "up", "--model", str(model), "--set", "pool.shards=4")
    assert backend.config is not None
    assert backend.config.model.dtype == "bfloat16"
    assert (backend.config.pool.shards, backend.config.pool.slots_per_layer) == (4, 1)


def test_each_line_of_progress_is_printed_once(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_module, "POLL_S", 0.0)
    waiting = ["pool: 1 of 2 shards ready"]
    backend = FakeBackend(progress=[waiting, waiting, ["attention: starting"]])
    result = run(backend, "up", "--model", str(model))
    assert result.out.count("pool: 1 of 2 shards ready") == 1
    assert result.out.index("pool: 1 of 2") < result.out.index("attention: starting")


def test_cluster_without_the_resources_is_refused(model: Path) -> None:
    backend = FakeBackend()
    argv = ["up", "--model", str(model), "--address", "auto", "--set", "pool.gpus=1"]
    result = run(backend, *argv)
    assert result.code == 2
    assert "error: Ray has 0 GPUs, the deployment asks for 2:" in result.err
    assert backend.asked == ["ask_vllm", "start_ray", "shutdown"]


@pytest.mark.parametrize("step", ["start_ray", "deploy", "first_token"])
def test_ctrl_c_while_starting_stops_everything(model: Path, step: str) -> None:
    backend = FakeBackend(errors={step: Stopped(signal.SIGINT)})
    result = run(backend, "up", "--model", str(model))
    assert result.code == 130
    assert backend.asked[-2:] == [step, "shutdown"]


def test_sigterm_that_ray_takes_for_its_own_has_the_same_exit_code(model: Path) -> None:
    backend = FakeBackend(errors={"start_ray": SystemExit(15)})
    assert run(backend, "up", "--model", str(model)).code == 143
    assert backend.asked[-1] == "shutdown"


@pytest.mark.parametrize(("stopped_in", "drain"), [("first_token", False), ("serving", True)])
def test_only_what_has_served_is_let_to_end_its_requests(
    model: Path, stopped_in: str, drain: bool
) -> None:
    backend = FakeBackend(errors={stopped_in: Stopped(signal.SIGINT)})
    run(backend, "up", "--model", str(model))
    assert backend.drained is drain


def test_shutdown_that_fails_does_not_keep_up_from_ending(model: Path) -> None:
    backend = FakeBackend(errors={"shutdown": RuntimeError("GCS is gone")})
    result = run(backend, "up", "--model", str(model))
    assert result.code == 130
    assert "could not be stopped in good order: RuntimeError('GCS is gone')" in result.out


def test_shutdown_that_hangs_is_left_behind(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_module, "SHUTDOWN_WAIT_S", 0.05)
    never = threading.Event()
    backend = FakeBackend()
    monkeypatch.setattr(backend, "shutdown", lambda config, drain: never.wait())
    result = run(backend, "up", "--model", str(model))
    never.set()
    assert result.code == 130
    assert "the cluster has not stopped within 0.05 s; ending its processes" in result.out


def test_up_is_recorded_while_it_runs_and_not_after(model: Path) -> None:
    backend = FakeBackend(progress=[])
    run(backend, "up", "--model", str(model), "--port", "8123")
    [record] = backend.records
    assert record == RunRecord(
        name="expertmesh",
        owner=this_process(),
        url="http://127.0.0.1:8123/v1",
        is_joined=False,
        address="127.0.0.1:6379",
        auth_mode="token",
    )
    assert find_records() == []


def test_refused_up_leaves_no_record() -> None:
    run(FakeBackend(), "up", "--model", "nowhere")
    assert find_records() == []


@pytest.mark.parametrize("detach", [[], ["--detach"]])
def test_second_up_of_the_same_name_is_refused(model: Path, detach: list[str]) -> None:
    Claim(load_config(None, {}), "http://127.0.0.1:8000/v1")
    backend = FakeBackend()
    result = run(backend, "up", "--model", str(model), *detach)
    assert result.code == 2
    assert f"a deployment named expertmesh already runs: process {os.getpid()}" in result.err
    assert "Stop it with: python -m deploy down --name expertmesh" in result.err
    assert backend.asked == []
    assert len(find_records()) == 1


@pytest.mark.parametrize("step", ["ask_vllm", "start_ray", "deploy", "first_token"])
def test_ctrl_c_that_a_library_swallows_is_heard_after_the_step(
    model: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    backend = FakeBackend()
    act = getattr(backend, step)

    def swallow(*arguments: object) -> object:
        with contextlib.suppress(Stopped):
            signal.raise_signal(signal.SIGINT)
        return act(*arguments)

    monkeypatch.setattr(backend, step, swallow)
    assert run(backend, "up", "--model", str(model)).code == 130
    assert backend.asked[: STARTED.index(step) + 1] == STARTED[: STARTED.index(step) + 1]
    assert set(backend.asked) <= {*STARTED[: STARTED.index(step) + 1], "shutdown"}


def test_ctrl_c_before_the_start_has_nothing_to_stop(model: Path) -> None:
    backend = FakeBackend(errors={"ask_vllm": Stopped(signal.SIGINT)})
    assert run(backend, "up", "--model", str(model)).code == 130
    assert backend.asked == ["ask_vllm"]


def test_failed_start_stops_everything_and_tells_why(model: Path) -> None:
    backend = FakeBackend(errors={"deploy": EngineError("vLLM is too old")})
    result = run(backend, "up", "--model", str(model))
    assert (result.code, result.err) == (1, "error: vLLM is too old\n")
    assert backend.asked[-1] == "shutdown"


def test_unforeseen_error_stops_everything_too(model: Path) -> None:
    backend = FakeBackend(errors={"deploy": ZeroDivisionError()})
    with pytest.raises(ZeroDivisionError):
        run(backend, "up", "--model", str(model))
    assert backend.asked[-1] == "shutdown"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "error: model.path is not set"),
        (["--model", "nowhere"], "nowhere does not exist"),
        (["--set", "pool.shrads=3"], 'unknown key pool.shrads: 3; did you mean "shards"?'),
        (["--set", "pool.shards"], "--set 'pool.shards' is not KEY=VALUE."),
        (["--set", "name=[a"], "--set 'name=[a': the value is not valid YAML."),
        (["--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["--port", "0"], "command line: gateway.port is 0; it should be greater than"),
    ],
)
def test_refusal_starts_nothing_and_has_no_traceback(argv: list[str], message: str) -> None:
    backend = FakeBackend()
    result = run(backend, "up", *argv)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert backend.asked == []


def test_architecture_that_vllm_does_not_know_starts_nothing(model: Path) -> None:
    config = json.loads((model / "config.json").read_text()) | {"architectures": ["TinyMow"]}
    (model / "config.json").write_text(json.dumps(config))
    backend = FakeBackend()
    result = run(backend, "up", "--model", str(model))
    assert result.code == 2
    assert "architecture TinyMow is unknown to the installed vLLM" in result.err
    assert backend.asked == ["ask_vllm"]


def test_engine_argument_that_vllm_does_not_know_starts_nothing(model: Path) -> None:
    backend = FakeBackend()
    result = run(backend, "up", "--model", str(model), "--set", "attention.engine_args.sead=1")
    assert result.code == 2
    assert 'did you mean "seed"?' in result.err
    assert backend.asked == ["ask_vllm"]


def test_demo_builds_its_model_and_uses_its_config(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up_module, "DEMO_MODEL", model)
    backend = FakeBackend()
    run(backend, "up", "--demo")
    assert backend.asked == ["build_demo_model", *SERVED_AND_STOPPED]
    assert backend.config is not None
    assert backend.config.model.served_name == "demo-moe"
    assert backend.demo == model


def test_demo_and_model_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(FakeBackend(), "up", "--demo", "--model", "x")
    assert caught.value.code == 2
    assert "not allowed with argument --demo" in capsys.readouterr().err


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(FakeBackend(), "up", "--help")
    assert "python -m deploy up --demo" in capsys.readouterr().out
