"""What each actor will need in memory, told from the checkpoint's headers before anything starts.

An estimate from stored sizes: weights in the type they will have when loaded, the KV cache that was
asked for, and what a process with vLLM in it was seen to take (DECISIONS.md).
"""

from dataclasses import dataclass

from router.errors import ConfigError
from services.checkpoint import Checkpoint, TensorInfo, is_routed_expert
from services.config import DeploymentConfig

GIB = 1024**3
SHARD_PROCESS_BYTES = int(0.7 * GIB)  # a shard without weights: torch, vLLM's layers, Ray
ATTENTION_PROCESS_BYTES = int(1.2 * GIB)  # Serve replica, engine core and worker without weights

# Types that are converted to the runtime's; quantised ones and their scales stay as stored.
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """Bytes that one actor of each kind needs."""

    attention_weight_bytes: int
    kv_cache_bytes: int
    shard_weight_bytes: int

    @property
    def attention_bytes(self) -> int:
        """Of one attention replica, all of its processes together."""
        return self.attention_weight_bytes + self.kv_cache_bytes + ATTENTION_PROCESS_BYTES

    @property
    def shard_bytes(self) -> int:
        """Of one shard."""
        return self.shard_weight_bytes + SHARD_PROCESS_BYTES


def estimate_memory(
    checkpoint: Checkpoint, config: DeploymentConfig, *, n_experts: int, dtype: str
) -> MemoryNeeds:
    """What one attention replica and one shard will need; `dtype` is the runtime's, not "auto"."""
    routed = attention = 0
    for tensor in checkpoint.tensors.values():
        if is_routed_expert(tensor.name):
            routed += loaded_bytes(tensor, dtype)
        else:
            attention += loaded_bytes(tensor, dtype)
    return MemoryNeeds(
        attention_weight_bytes=attention,
        kv_cache_bytes=int(config.attention.kv_cache_gib * GIB),
        shard_weight_bytes=routed * config.pool.slots_for(n_experts) // n_experts,
    )


def loaded_bytes(tensor: TensorInfo, dtype: str) -> int:
    """Bytes of a tensor once it is loaded."""
    if tensor.dtype in FLOAT_DTYPES:
        return tensor.n_elements * DTYPE_BYTES[dtype]
    return tensor.n_bytes


def check_memory(needs: MemoryNeeds, config: DeploymentConfig, available_bytes: int) -> None:
    """Raise ConfigError if the actors that run on this machine's CPU need more than there is."""
    replicas = 0 if config.attention.gpus else config.attention.most_replicas
    shards = 0 if config.pool.gpus else config.pool.most_shards
    needed = replicas * needs.attention_bytes + shards * needs.shard_bytes
    if needed <= available_bytes:
        return
    raise ConfigError(
        f"memory is too small: {gib(needed)} needed, {gib(available_bytes)} available on this "
        f"machine. {describe_memory(needs, config)}. Set a smaller attention.kv_cache_gib, "
        "pool.redundancy or pool.slots_per_layer, model.dtype bfloat16, or use a Ray cluster of "
        "several machines (ray.address)."
    )


def describe_memory(needs: MemoryNeeds, config: DeploymentConfig) -> str:
    """One line: what each actor needs, and of what it is made."""
    return (
        f"attention replica: {gib(needs.attention_bytes)} x {config.attention.most_replicas} "
        f"(weights {gib(needs.attention_weight_bytes)}, KV cache {gib(needs.kv_cache_bytes)}, "
        f"process {gib(ATTENTION_PROCESS_BYTES)}); "
        f"shard: {gib(needs.shard_bytes)} x {config.pool.most_shards} "
        f"(weights {gib(needs.shard_weight_bytes)}, process {gib(SHARD_PROCESS_BYTES)})"
    )


def gib(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.2f} GiB"
