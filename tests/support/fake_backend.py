"""The command line against a fake platform: notes what it is asked, and starts nothing."""

import io
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from deploy.ask import RunStatus
from deploy.cli import main
from deploy.preflight_vllm import VllmFacts
from deploy.records import RunRecord, find_records
from services.config import DeploymentConfig
from services.hardware import Machine
from services.messages import DecisionStatus
from services.ray_session import RayAccess

MACHINE = Machine(frozenset({"avx512_bf16"}), cores=4, available_bytes=1 << 40, gpus=0)


@dataclass
class FakeBackend:
    """Notes what it was asked, and raises what a test put into `errors`."""

    asked: list[str] = field(default_factory=list)
    errors: dict[str, BaseException] = field(default_factory=dict)
    progress: list[list[str]] = field(default_factory=list)
    config: DeploymentConfig | None = None
    demo: Path | None = None
    records: list[RunRecord] = field(default_factory=list)  # on disk, when Serve was asked
    drained: bool | None = None
    problem: str = ""

    def quiet(self, log: Path) -> AbstractContextManager[None]:
        return nullcontext()

    def _note(self, what: str) -> None:
        self.asked.append(what)
        if what in self.errors:
            raise self.errors[what]

    def build_demo_model(self, out: Path, progress: Callable[[str], None]) -> None:
        self.demo = out
        self._note("build_demo_model")

    def ask_vllm(self) -> VllmFacts:
        self._note("ask_vllm")
        known = frozenset({"seed", "tool_call_parser", "enable_auto_tool_choice"})
        return VllmFacts(frozenset({"TinyMoe"}), known)

    def start_ray(self, config: DeploymentConfig) -> RayAccess:
        self.config = config
        self._note("start_ray")
        return RayAccess("127.0.0.1:6379", "token")

    def resources(self) -> dict[str, float]:
        return {"CPU": 4.0, "memory": 1e9}

    def deploy(self, config: DeploymentConfig) -> None:
        self._note("deploy")

    def app_progress(self, app: str) -> list[str]:
        return self.progress.pop(0)

    def is_ready(self, app: str) -> bool:
        self.records = find_records()
        return not self.progress

    def first_token(self, config: DeploymentConfig) -> None:
        self._note("first_token")

    def shutdown(self, config: DeploymentConfig, *, drain: bool) -> None:
        self.drained = drain
        self._note("shutdown")

    def status(self, record: RunRecord) -> RunStatus:
        self._note(f"status of {record.name}")
        return RunStatus(record, problem=self.problem)

    def rebalance(self, record: RunRecord) -> DecisionStatus:
        self._note(f"rebalance {record.name}")
        return DecisionStatus(0.0, "asked for", True, "saves 30 rows", 4, 1.5, 1.1)

    def drain(self, record: RunRecord, grace_s: float) -> int:
        self._note(f"drain {record.name}")
        return 0

    def delete_app(self, record: RunRecord) -> None:
        self._note(f"delete {record.name}")


@dataclass
class Run:
    code: int
    out: str
    err: str


def run(backend: FakeBackend, *argv: str) -> Run:
    out, err = io.StringIO(), io.StringIO()
    code = main(argv, backend=backend, look=lambda: MACHINE, out=out, err=err)
    return Run(code, out.getvalue(), err.getvalue())
