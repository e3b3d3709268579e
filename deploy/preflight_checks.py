"""The single checks before a start; each takes what it looks at and raises ConfigError.

`preflight` says which are made and in which order. Nothing here needs torch, vLLM or Ray.
"""

import errno
import socket
from collections.abc import Callable, Mapping

from deploy.memory import FLOAT_DTYPES
from router.errors import CheckpointError, ConfigError
from services.checkpoint import Checkpoint, expert_id
from services.config import DeploymentConfig, PoolConfig
from services.hardware import AMX_FLAG

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tekken.json")
NO_TOKENIZER_KEYS = ("tokenizer", "skip_tokenizer_init")
NOT_ON_CPUS = "deepseek_v4"  # model_type's beginning


def check_experts_stored(checkpoint: Checkpoint, experts: int) -> None:
    """Raise CheckpointError if the routed experts are not where every other family keeps them."""
    names = [tensor.name for tensor in checkpoint.routed]
    if not names:
        raise CheckpointError(
            f"{checkpoint.path}: config.json says {experts} experts, but no tensor's name shows a "
            f"routed expert (a path component experts); there are "
            f"{', '.join(sorted(checkpoint.tensors)[:3])} ... Serve this model with vLLM itself, "
            "or add the naming to services/checkpoint_names.py."
        )
    highest = max((n for name in names if (n := expert_id(name)) is not None), default=0)
    if highest >= experts:
        raise CheckpointError(
            f"{checkpoint.path} has weights of expert {highest}, but config.json says {experts} "
            f"experts (0 to {experts - 1}). config.json is of another model: download it again."
        )


def check_tokenizer(checkpoint: Checkpoint, config: DeploymentConfig) -> None:
    """Raise CheckpointError if there is no tokenizer."""
    if any(config.attention.engine_args.get(key) for key in NO_TOKENIZER_KEYS):
        return
    files = {file.name for file in checkpoint.path.iterdir()}
    if not (files & set(TOKENIZER_FILES) or any(name.endswith(".tiktoken") for name in files)):
        raise CheckpointError(
            f"model folder {checkpoint.path} has no tokenizer (none of "
            f"{', '.join(TOKENIZER_FILES)}). Download the tokenizer's files too, or name another "
            "folder in attention.engine_args.tokenizer."
        )


def check_slots(pool: PoolConfig, experts: int) -> None:
    """Raise ConfigError if the pool has no room for every replica that redundancy asks for."""
    slots = pool.slots_for(experts)
    needed = experts * pool.redundancy
    if pool.least_shards * slots < needed:
        least = -(-needed // pool.least_shards)
        raise ConfigError(
            f"pool.slots_per_layer is {slots}: {pool.least_shards} shards x {slots} slots hold "
            f"{pool.least_shards * slots} replicas a layer, but {experts} experts x redundancy "
            f"{pool.redundancy} need {needed}. Set pool.slots_per_layer to at least {least}, "
            f"pool.shards to at least {-(-needed // slots)}, or leave slots_per_layer out."
        )
    if slots > experts:
        raise ConfigError(
            f"pool.slots_per_layer is {slots}, but a layer has {experts} experts and a shard "
            f"holds each at most once. Set it to at most {experts}."
        )


def check_format(checkpoint: Checkpoint, flags: frozenset[str]) -> None:
    """Raise ConfigError if the experts are stored in a format that this CPU has no kernel for."""
    quantisation = checkpoint.config.get("quantization_config")
    stored = {t.dtype for t in checkpoint.routed} - FLOAT_DTYPES
    if AMX_FLAG in flags or not stored or not isinstance(quantisation, Mapping):
        return
    raise ConfigError(
        f"{checkpoint.path}: the experts are stored in format "
        f"{quantisation.get('quant_method', 'unknown')} ({', '.join(sorted(stored))}); vLLM's CPU "
        f"kernels for it need a CPU with AMX (flag {AMX_FLAG}), which this one lacks. Use a "
        "checkpoint in bfloat16 or float32, a CPU with AMX, or GPUs (pool.gpus)."
    )


def check_attention(checkpoint: Checkpoint) -> None:
    """Raise ConfigError if vLLM's attention for this model does not run on CPUs."""
    kind = str(checkpoint.config.get("model_type"))
    if not kind.startswith(NOT_ON_CPUS):
        return
    raise ConfigError(
        f"{checkpoint.path}: model_type {kind}: attention of DeepSeek-V4 does not run on CPUs with "
        "vLLM 0.32.0 (it asks for triton-cpu, which PyPI does not have). Serve it on GPUs "
        "(attention.gpus, pool.gpus)."
    )


def check_resources(
    config: DeploymentConfig, *, cpus: float, gpus: float, other_cpus: float = 0.0
) -> None:
    """Raise ConfigError if the deployment asks Ray for more than the cluster has in total.

    other_cpus: reserved by actors that are neither attention nor pool.
    """
    for kind, there, of_attention, of_shard, other in (
        ("CPUs", cpus, config.attention.cpus, config.pool.cpus, other_cpus),
        ("GPUs", gpus, config.attention.gpus, config.pool.gpus, 0.0),
    ):
        replicas, shards = config.attention.replicas, config.pool.shards
        asked = replicas * of_attention + shards * of_shard + other
        if asked > there:
            key = kind.lower()
            raise ConfigError(
                f"Ray has {there:g} {kind}, the deployment asks for {asked:g}: {replicas} "
                f"attention replicas x {of_attention:g}, {shards} shards x {of_shard:g}, others "
                f"{other:g}. Lower attention.{key} or pool.{key} (they only reserve), use fewer "
                "replicas or shards, or add machines."
            )


def check_port(host: str, port: int, bind: Callable[[str, int], None] | None = None) -> None:
    """Raise ConfigError if nobody could listen on host:port. `bind` raises OSError then."""
    try:
        (bind or _bind)(host, port)
    except OSError as error:
        raise ConfigError(_port_message(host, port, error)) from error


def _bind(host: str, port: int) -> None:
    (family, kind, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _port_message(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"gateway.port {port} on {host} is taken by another process. Stop it (an earlier "
            "deployment: python -m deploy down), or choose another port with --port."
        )
    if error.errno == errno.EACCES:
        return f"gateway.port {port} is reserved for root. Choose one of 1024 to 65535 with --port."
    return (
        f"gateway.host {host!r} is not an address of this machine ({error.strerror}). "
        "Set 127.0.0.1 for this machine only, or 0.0.0.0 for all its addresses."
    )
