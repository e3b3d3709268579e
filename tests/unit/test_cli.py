"""The command line against a fake platform: order, messages, exit codes, and what is stopped."""

import io
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deploy import up as up_module
from deploy.cli import main
from deploy.preflight_vllm import VllmFacts
from deploy.signals import Stopped
from router.errors import ConfigError, EngineError
from services.config import DeploymentConfig
from services.hardware import Machine

MACHINE = Machine(frozenset({"avx512_bf16"}), cores=4, available_bytes=1 << 40, gpus=0)


@dataclass
class FakeStatus:
    deployments: list[tuple[str, str, int]]
    table_version: int
    complete: bool
    shards: list[tuple[str, str, str, int, int]]


@dataclass
class FakeBackend:
    """Notes what it was asked, and raises what a test put into `errors`."""

    asked: list[str] = field(default_factory=list)
    errors: dict[str, BaseException] = field(default_factory=dict)
    progress: list[list[str]] = field(default_factory=list)
    config: DeploymentConfig | None = None
    demo: Path | None = None

    def _note(self, what: str) -> None:
        self.asked.append(what)
        if what in self.errors:
            raise self.errors[what]

    def build_demo_model(self, out: Path, progress: Callable[[str], None]) -> None:
        self.demo = out
        self._note("build_demo_model")

    def ask_vllm(self) -> VllmFacts:
        self._note("ask_vllm")
        return VllmFacts(frozenset({"TinyMoe"}), frozenset({"seed"}))

    def start_ray(self, config: DeploymentConfig) -> None:
        self.config = config
        self._note("start_ray")

    def resources(self) -> dict[str, float]:
        return {"CPU": 4.0, "memory": 1e9}

    def deploy(self, config: DeploymentConfig) -> None:
        self._note("deploy")

    def app_progress(self) -> list[str]:
        return self.progress.pop(0)

    def is_ready(self) -> bool:
        return not self.progress

    def first_token(self, config: DeploymentConfig) -> None:
        self._note("first_token")

    def status(self) -> FakeStatus:
        self._note("status")
        return FakeStatus(
            deployments=[("ExpertPool", "HEALTHY", 2), ("Attention", "HEALTHY", 1)],
            table_version=7,
            complete=True,
            shards=[("shard-a", "host-1", "ready", 4, 4), ("shard-b", "host-1", "loading", 0, 4)],
        )

    def shutdown(self) -> None:
        self._note("shutdown")


@dataclass
class Run:
    code: int
    out: str
    err: str


STARTED = ["ask_vllm", "start_ray", "deploy", "first_token"]


@pytest.fixture(autouse=True)
def no_real_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No port is tried, no process looked at, and signal handlers are put back."""
    for module in ("deploy.up.check_port", "deploy.preflight.check_port"):
        monkeypatch.setattr(module, lambda host, port: None)
    monkeypatch.setattr("deploy.up.descendants", list)
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


def run(backend: FakeBackend, *argv: str) -> Run:
    out, err = io.StringIO(), io.StringIO()
    code = main(argv, backend=backend, look=lambda: MACHINE, out=out, err=err)
    return Run(code, out.getvalue(), err.getvalue())


def test_up_starts_in_order_and_detaches(model: Path) -> None:
    backend = FakeBackend()
    result = run(backend, "up", "--model", str(model), "--detach")
    assert (result.code, result.err) == (0, "")
    assert backend.asked == STARTED


def test_up_prints_url_and_a_line_to_copy(model: Path) -> None:
    result = run(FakeBackend(), "up", "--model", str(model), "--detach", "--port", "8123")
    assert 'ready: http://127.0.0.1:8123/v1 serves "tiny". Try:' in result.out
    curl = next(line for line in result.out.splitlines() if line.startswith("curl "))
    assert curl.startswith("curl http://127.0.0.1:8123/v1/chat/completions -H")
    assert json.loads(curl.split("-d ")[1].strip("'"))["model"] == "tiny"


def test_up_says_what_was_worked_out(model: Path) -> None:
    result = run(FakeBackend(), "up", "--model", str(model), "--detach")
    assert "100% of it in routed experts, 4 a layer, 2 for a token" in result.out
    assert "dtype bfloat16, 4 cores: attention 1 x 4 threads, shards 2 x 2 threads, 2 slots" in (
        result.out
    )
    assert "memory: attention replica: 2.20 GiB x 1" in result.out


def test_deployment_gets_the_resolved_config(model: Path) -> None:
    backend = FakeBackend()
    run(backend, "up", "--model", str(model), "--detach", "--set", "pool.shards=4")
    assert backend.config is not None
    assert backend.config.model.dtype == "bfloat16"
    assert (backend.config.pool.shards, backend.config.pool.slots_per_layer) == (4, 1)


def test_each_line_of_progress_is_printed_once(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up_module, "POLL_S", 0.0)
    waiting = ["pool: 1 of 2 shards ready"]
    backend = FakeBackend(progress=[waiting, waiting, ["attention: starting"]])
    result = run(backend, "up", "--model", str(model), "--detach")
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
    result = run(backend, "up", "--model", str(model), "--detach")
    assert result.code == 130
    assert backend.asked[-2:] == [step, "shutdown"]


def test_ctrl_c_while_serving_stops_everything(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve_no_longer(options: object, *rest: object) -> None:
        raise Stopped(signal.SIGTERM)

    backend = FakeBackend()
    monkeypatch.setattr("deploy.up.start", serve_no_longer)
    result = run(backend, "up", "--model", str(model))
    assert result.code == 143
    assert backend.asked == ["ask_vllm", "shutdown"]


def test_ctrl_c_before_the_start_has_nothing_to_stop(model: Path) -> None:
    backend = FakeBackend(errors={"ask_vllm": Stopped(signal.SIGINT)})
    assert run(backend, "up", "--model", str(model)).code == 130
    assert backend.asked == ["ask_vllm"]


def test_failed_start_stops_everything_and_tells_why(model: Path) -> None:
    backend = FakeBackend(errors={"deploy": EngineError("vLLM is too old")})
    result = run(backend, "up", "--model", str(model), "--detach")
    assert (result.code, result.err) == (1, "error: vLLM is too old\n")
    assert backend.asked[-1] == "shutdown"


def test_unforeseen_error_stops_everything_too(model: Path) -> None:
    backend = FakeBackend(errors={"deploy": ZeroDivisionError()})
    with pytest.raises(ZeroDivisionError):
        run(backend, "up", "--model", str(model), "--detach")
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
    result = run(backend, "up", "--demo", "--detach")
    assert result.code == 0
    assert backend.asked == ["build_demo_model", *STARTED]
    assert backend.config is not None
    assert backend.config.model.served_name == "demo-moe"
    assert backend.demo == model


def test_demo_and_model_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(FakeBackend(), "up", "--demo", "--model", "x")
    assert caught.value.code == 2
    assert "not allowed with argument --demo" in capsys.readouterr().err


def test_status_shows_table_deployments_and_shards() -> None:
    result = run(FakeBackend(), "status")
    assert result.out.splitlines() == [
        "table version 7, complete",
        "",
        "deployment  status   replicas",
        "ExpertPool  HEALTHY  2",
        "Attention   HEALTHY  1",
        "",
        "shard    host    state    slots used",
        "shard-a  host-1  ready    4 of 4",
        "shard-b  host-1  loading  0 of 4",
    ]


def test_status_is_readable_for_programs() -> None:
    shown = json.loads(run(FakeBackend(), "status", "--json").out)
    assert (shown["table_version"], shown["complete"]) == (7, True)
    assert shown["deployments"][1] == {"name": "Attention", "status": "HEALTHY", "replicas": 1}
    assert shown["shards"][1] == {
        "shard": "shard-b",
        "host": "host-1",
        "state": "loading",
        "slots_used": 0,
        "slots": 4,
    }


def test_status_of_nothing_is_told() -> None:
    backend = FakeBackend(errors={"status": ConfigError("nothing runs here")})
    result = run(backend, "status")
    assert (result.code, result.err) == (2, "error: nothing runs here\n")


def test_down_stops_and_may_be_repeated() -> None:
    backend = FakeBackend()
    assert [run(backend, "down").code, run(backend, "down").code] == [0, 0]
    assert backend.asked == ["shutdown", "shutdown"]


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(FakeBackend(), "up", "--help")
    assert "python -m deploy up --demo" in capsys.readouterr().out
