"""Everything that can be refused before anything is started, and what is then worked out.

The checks themselves are in `preflight_checks` and `memory`; they answer at once. Those of
`preflight_vllm` take seconds, because they ask vLLM, and are run after these.
"""

from dataclasses import dataclass

from deploy.memory import MemoryNeeds, check_memory, estimate_memory
from deploy.preflight_checks import (
    check_attention,
    check_experts_stored,
    check_format,
    check_port,
    check_resources,
    check_slots,
    check_tokenizer,
)
from services.checkpoint import Checkpoint, n_experts, n_experts_per_token, read_checkpoint
from services.config import DeploymentConfig
from services.hardware import Machine, choose_dtype, choose_threads


@dataclass(frozen=True, slots=True)
class Preflight:
    """What the checks found out; `config` has dtype, slots and threads filled in."""

    config: DeploymentConfig
    checkpoint: Checkpoint
    n_experts: int
    n_experts_per_token: int
    memory: MemoryNeeds


def preflight(config: DeploymentConfig, machine: Machine) -> Preflight:
    """Check checkpoint, slots, format, memory and port. Raises ConfigError, CheckpointError.

    With `ray.address` set the actors run elsewhere: this machine's memory, CPU and port are then
    not looked at.
    """
    checkpoint = read_checkpoint(config.model.folder)
    experts = n_experts(checkpoint.config)
    per_token = n_experts_per_token(checkpoint.config)
    check_experts_stored(checkpoint, experts)
    check_tokenizer(checkpoint, config)
    check_slots(config.pool, experts)
    if config.attention.gpus == 0:
        check_attention(checkpoint)
    resolved = resolve(config, machine, experts)
    needs = estimate_memory(checkpoint, resolved, n_experts=experts, dtype=resolved.model.dtype)
    if config.ray.address is None:
        if config.pool.gpus == 0:
            check_format(checkpoint, machine.flags)
        check_resources(config, cpus=float(config.ray.num_cpus or "inf"), gpus=float(machine.gpus))
        check_memory(needs, config, machine.available_bytes)
        check_port(config.gateway.host, config.gateway.port)
    return Preflight(resolved, checkpoint, experts, per_token, needs)


def resolve(config: DeploymentConfig, machine: Machine, experts: int) -> DeploymentConfig:
    """The same deployment with dtype, slots and threads worked out."""
    attention, pool, local = config.attention, config.pool, config.ray.address is None
    if local:
        few, many, of_shard = choose_threads(
            machine.cores, attention.replicas, pool.shards, most_replicas=attention.most_replicas
        )
    else:  # other machines: an actor has the cores that Ray reserves for it
        few = many = max(1, int(attention.cpus))
        of_shard = max(1, int(pool.cpus))
    if attention.gpus:
        many = few
    dtype = choose_dtype(machine.flags, bool(attention.gpus or pool.gpus), config.model.dtype)
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"dtype": dtype}),
            "attention": attention.model_copy(
                update={
                    "threads": attention.threads or few,
                    "prompt_threads": attention.prompt_threads or attention.threads or many,
                }
            ),
            "pool": pool.model_copy(
                update={
                    "threads": pool.threads or of_shard,
                    "slots_per_layer": pool.slots_for(experts),
                }
            ),
        }
    )
