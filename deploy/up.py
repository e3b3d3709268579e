"""`up`: from a configuration to the first token, and back to an empty machine.

Refusals come first; then `deploy.start` starts Ray and the application. However it ends,
everything that was started is stopped. `deploy.detach` runs the same in the background.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.backend import Backend
from deploy.first_token import base_url
from deploy.memory import describe_memory, gib
from deploy.preflight import Preflight, preflight
from deploy.preflight_checks import check_port
from deploy.preflight_vllm import check_architecture, check_engine_args
from deploy.processes import adopt_orphans
from deploy.progress import Progress
from deploy.records import LIBRARY_LOG, Claim
from deploy.signals import raise_on_stop_signals, stop_signals_ignored
from deploy.start import Session, end_descendants, end_now, serve, start, stop
from deploy.watchdog import FORCE_WAIT_S, obeyed_within
from services.config import DeploymentConfig, load_config
from services.hardware import Machine

ROOT = Path(__file__).parents[1]
DEMO_CONFIG = ROOT / "deploy" / "configs" / "demo.yaml"
DEMO_MODEL = ROOT / ".expertmesh" / "demo-model"


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What the command line says."""

    config_file: Path | None
    overrides: Mapping[str, Any]
    is_demo: bool = False


def up(
    options: UpOptions,
    backend: Backend,
    progress: Progress,
    machine: Machine,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Serve until stopped.

    Raises ConfigError before anything was started, another PlatformError if the start fails, and
    Stopped when a signal ends it.
    """
    signals = raise_on_stop_signals()
    config = read_config(options)
    claim = Claim(config, f"{base_url(config)}/v1")
    adopt_orphans()
    try:
        with backend.quiet(claim.folder / LIBRARY_LOG):
            checked = check(config, options.is_demo, backend, progress, machine)
            signals.check()
            run(checked.config, Session(backend, progress, claim, signals, sleep))
    finally:
        with stop_signals_ignored():
            end_descendants()
            claim.release()


def run(config: DeploymentConfig, session: Session) -> None:
    """Start, serve, and stop what was started."""
    try:
        with obeyed_within(FORCE_WAIT_S, lambda signum: end_now(session, signum)):
            start(config, session)
            serve(session)
    finally:
        with stop_signals_ignored():
            stop(config, session)


def read_config(options: UpOptions) -> DeploymentConfig:
    """What is to be deployed. Raises ConfigError."""
    overrides, file = dict(options.overrides), options.config_file
    if options.is_demo:
        overrides["model.path"] = str(DEMO_MODEL)
        file = file or DEMO_CONFIG
    return load_config(file, overrides)


def check(
    config: DeploymentConfig, is_demo: bool, backend: Backend, progress: Progress, machine: Machine
) -> Preflight:
    """Make the demo model if it is wanted, and refuse what cannot work."""
    if config.ray.address is None:  # told before the demo model takes its time
        check_port(config.gateway.host, config.gateway.port)
    if is_demo:
        with progress.step("demo model"):
            backend.build_demo_model(DEMO_MODEL, progress.say)
    checked = preflight(config, machine)
    describe(checked, machine, progress)
    with progress.step("asking vLLM whether it knows the model"):
        facts = backend.ask_vllm()
    check_architecture(checked.checkpoint.config, facts)
    check_engine_args(config.attention.engine_args, facts)
    return checked


def describe(checked: Preflight, machine: Machine, progress: Progress) -> None:
    """Say what will be served and what was worked out."""
    config, checkpoint = checked.config, checked.checkpoint
    share = checkpoint.routed_bytes / checkpoint.total_bytes
    progress.say(
        f"model {config.model.served_name}: {gib(checkpoint.total_bytes)}, {share:.0%} of it in "
        f"routed experts, {checked.n_experts} a layer, {checked.n_experts_per_token} for a token"
    )
    attention = config.attention
    least = attention.half_batch_tokens_used
    cut = f", {least} tokens in halves" if least else ""
    progress.say(
        f"dtype {config.model.dtype}, {machine.cores} cores: attention "
        f"{attention.replicas} x {attention.threads} threads "
        f"({attention.prompt_threads} for prompts{cut}), shards "
        f"{config.pool.shards} x {config.pool.threads} threads, "
        f"{config.pool.slots_per_layer} slots a layer"
    )
    progress.say(f"memory: {describe_memory(checked.memory, config)}")
