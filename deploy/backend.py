"""What the command line asks of the rest of the platform, and the real one that answers.

The protocol is the seam at which unit tests put a fake. The real one imports Ray and vLLM only when
it is used, so that `--help` and a refusal come at once.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from deploy.first_token import ask_first_token
from deploy.preflight_vllm import VllmFacts, ask_vllm
from deploy.quiet import output_into
from deploy.records import RunRecord
from services.config import DeploymentConfig

if TYPE_CHECKING:
    from deploy.ask import RunStatus
    from services.messages import DecisionStatus
    from services.ray_session import RayAccess


ROOT = Path(__file__).parents[1]


class Backend(Protocol):
    """The acts behind the commands."""

    def quiet(self, log: Path) -> AbstractContextManager[None]:
        """While it lasts, libraries print into `log`."""

    def build_demo_model(self, out: Path, progress: Callable[[str], None]) -> None: ...

    def ask_vllm(self) -> VllmFacts: ...

    def start_ray(self, config: DeploymentConfig) -> "RayAccess": ...

    def resources(self) -> Mapping[str, float]:
        """What the whole cluster offers, by Ray's names: CPU, GPU."""

    def deploy(self, config: DeploymentConfig) -> None:
        """Hand the application to Serve; returns before it is ready."""

    def app_progress(self, app: str) -> list[str]:
        """What the application is waiting for, one line each."""

    def is_ready(self, app: str) -> bool: ...

    def first_token(self, config: DeploymentConfig) -> None:
        """Return when the API has answered a request; raise PlatformError if it will not."""

    def shutdown(self, config: DeploymentConfig, *, drain: bool) -> None:
        """Stop what this process started; with `drain`, let requests end first.

        Nothing to stop is no error.
        """

    def status(self, record: RunRecord) -> "RunStatus":
        """Ask a deployment that another process runs; answers within seconds."""

    def rebalance(self, record: RunRecord) -> "DecisionStatus":
        """Have a deployment place its experts anew; raise PlatformError if it does not."""

    def drain(self, record: RunRecord, grace_s: float) -> int:
        """Refuse new requests; returns how many are open after that many seconds at most."""

    def delete_app(self, record: RunRecord) -> None:
        """Take the application of an `up` that died off the cluster that it had joined."""


class RealBackend:
    """Acts on this machine's Ray, through `services`."""

    def __init__(self) -> None:
        self._access: RayAccess | None = None

    def quiet(self, log: Path) -> AbstractContextManager[None]:
        return output_into(log)

    def build_demo_model(self, out: Path, progress: Callable[[str], None]) -> None:
        from deploy.demo_model import build_demo_model

        build_demo_model(out, progress=progress)

    def ask_vllm(self) -> VllmFacts:
        return ask_vllm(cache=ROOT / ".expertmesh")

    def start_ray(self, config: DeploymentConfig) -> "RayAccess":
        from services.ray_session import start_ray

        self._access = start_ray(config)
        return self._access

    def resources(self) -> Mapping[str, float]:
        from services.ray_session import cluster_resources

        return cluster_resources()

    def deploy(self, config: DeploymentConfig) -> None:
        from deploy.ask import deploy_app
        from services.forking.launch import python_for

        assert self._access is not None
        deploy_app(config, self._access, python_for(config))

    def app_progress(self, app: str) -> list[str]:
        from services.ray_session import app_progress

        return app_progress(app)

    def is_ready(self, app: str) -> bool:
        from services.ray_session import is_ready

        return is_ready(app)

    def first_token(self, config: DeploymentConfig) -> None:
        ask_first_token(config)

    def shutdown(self, config: DeploymentConfig, *, drain: bool) -> None:
        from services.ray_session import shutdown

        shutdown(config, drain=drain)

    def status(self, record: RunRecord) -> "RunStatus":
        from deploy.ask import ask_status

        return ask_status(record)

    def rebalance(self, record: RunRecord) -> "DecisionStatus":
        from deploy.ask import ask_rebalance

        return ask_rebalance(record)

    def drain(self, record: RunRecord, grace_s: float) -> int:
        from deploy.ask import drain_app

        return drain_app(record, grace_s)

    def delete_app(self, record: RunRecord) -> None:
        from deploy.ask import delete_app

        delete_app(record)
