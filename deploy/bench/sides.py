"""The two that are compared: unmodified vLLM's server, and ExpertMesh by its command line.

Both get the same checkpoint, type, cores, limits and cache, on this machine's loopback.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.bench.servers import Launch
from deploy.free_port import free_port
from services.attention.engine_args import cpu_engine_args
from services.checkpoint import read_checkpoint
from services.local_ray import LOOPBACK

ROOT = Path(__file__).parents[2]
SERVED_NAME = "bench"
VLLM, EXPERTMESH = "vLLM", "ExpertMesh"
SIDES = (VLLM, EXPERTMESH)

ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "VLLM_HOST_IP": LOOPBACK,
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """What both sides are given, and how ExpertMesh spreads it."""

    dtype: str
    max_model_len: int  # tokens
    max_num_seqs: int
    kv_cache_gib: float
    shards: int
    redundancy: int
    replicas: int = 1  # attention replicas of one pool, against as many whole engines
    settings: tuple[str, ...] = ()  # KEY=VALUE, of ExpertMesh alone


def launches_of(side: str, setup: EngineSetup, checkpoint: Path) -> tuple[Launch, ...]:
    """How to start one side on ports that are free now. Whole engines have their share of cores."""
    if side == EXPERTMESH:
        return (_launch(expertmesh_words(setup, checkpoint), {}),)
    cores, words = sorted(os.sched_getaffinity(0)), vllm_words(setup, checkpoint)
    count = setup.replicas
    shares = [set(cores[n::count]) or set(cores) for n in range(count)]
    return tuple(_launch(words, vllm_environment(share)) for share in shares)


def _launch(words: tuple[str, ...], more: Mapping[str, str]) -> Launch:
    port, environment = free_port(), {**os.environ, **ENVIRONMENT, **more}
    return Launch(
        words=(sys.executable, "-m", *words, "--port", str(port)),
        environment=environment,
        folder=ROOT,
        url=f"http://{LOOPBACK}:{port}",
        model=SERVED_NAME,
    )


def vllm_environment(cores: set[int]) -> Mapping[str, str]:
    """All cores for its kernels, and no plugin, ours included."""
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(cores))),
        "VLLM_PLUGINS": "",
    }


def vllm_words(setup: EngineSetup, checkpoint: Path) -> tuple[str, ...]:
    """vLLM's own server, run eagerly as an attention replica is."""
    extra = cpu_engine_args(read_checkpoint(checkpoint).config, setup.dtype)
    options = {
        "model": str(checkpoint),
        "served-model-name": SERVED_NAME,
        "host": LOOPBACK,
        "dtype": setup.dtype,
        "max-model-len": str(setup.max_model_len),
        "max-num-seqs": str(setup.max_num_seqs),
        "max-num-batched-tokens": str(batched_tokens(setup)),
        "kv-cache-memory-bytes": str(round(setup.kv_cache_gib * 2**30)),
        **{
            name.replace("_", "-"): value if isinstance(value, str) else json.dumps(value)
            for name, value in extra.items()
        },
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    flags = ("--enforce-eager", "--no-enable-prefix-caching")
    return ("vllm.entrypoints.openai.api_server", *words, *flags)


def expertmesh_words(setup: EngineSetup, checkpoint: Path) -> tuple[str, ...]:
    """`python -m deploy up`, under a name of its own."""
    settings = {
        "name": deployment_name(),
        "model.name": SERVED_NAME,
        "model.dtype": setup.dtype,
        "model.max_model_len": setup.max_model_len,
        "attention.max_num_seqs": setup.max_num_seqs,
        "attention.max_num_batched_tokens": batched_tokens(setup),
        "attention.kv_cache_gib": setup.kv_cache_gib,
        "attention.engine_args.enable_prefix_caching": "false",
        "attention.replicas": setup.replicas,
        "pool.shards": setup.shards,
        "pool.redundancy": setup.redundancy,
    }
    pairs = [*(f"{key}={value}" for key, value in settings.items()), *setup.settings]
    return ("deploy", "up", "--model", str(checkpoint), *(w for p in pairs for w in ("--set", p)))


def deployment_name() -> str:
    """No other deployment of this user has it."""
    return f"bench-{os.getpid()}"


def batched_tokens(setup: EngineSetup) -> int:
    """Tokens of one engine step: room for two prompts, as the defaults of the two differ."""
    return max(2 * setup.max_model_len, setup.max_num_seqs)
