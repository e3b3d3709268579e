"""How many pods of which size a deployment needs on given machines, or why it cannot fit.

Pure arithmetic on the checkpoint's headers (`deploy.memory`); `render` writes the result down.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from deploy.kubernetes.machines import Machine, Machines
from deploy.memory import (
    ATTENTION_PROCESS_BYTES,
    GIB,
    SHARD_PROCESS_BYTES,
    MemoryNeeds,
    estimate_memory,
    gib,
)
from deploy.preflight_checks import check_experts_stored, check_slots, check_tokenizer
from router.errors import ConfigError
from services.checkpoint import Checkpoint, n_experts
from services.config import DeploymentConfig
from services.hardware import choose_dtype

# Seen in pods on CPUs (k8s/README.md): Ray's processes and Serve's proxy in each, 0.5 GiB of
# object store and shared memory included.
RAY_BYTES = int(1.5 * GIB)
HEAD_BYTES = 3 * GIB
GATEWAY_BYTES = int(2.5 * GIB)
# Not measured, no GPU was at hand: what CUDA takes in the host's memory and in the GPU's.
CUDA_HOST_BYTES = 4 * GIB
CUDA_GPU_BYTES = 2 * GIB
LEAST_KV_BYTES = 1 * GIB
KEPT_CPUS = 2  # of a machine: for Kubernetes, and for the head's and the gateway's pods
MOST_GPU_CPUS = 8  # of an actor whose layers run on a GPU
GPU_SHARE = 0.9  # of a GPU's memory, if attention.engine_args.gpu_memory_utilization is not set


@dataclass(frozen=True, slots=True)
class Pods:
    """The pods of one role, all alike; each carries one actor."""

    count: int  # at first
    cpus: float  # Ray's, and requested of Kubernetes
    memory_bytes: int
    gpus: int = 0
    bounds: tuple[int, int] | None = None  # least and most; None: always `count`

    @property
    def least(self) -> int:
        """That there may be."""
        return self.bounds[0] if self.bounds else self.count

    @property
    def most(self) -> int:
        """That there may be."""
        return self.bounds[1] if self.bounds else self.count

    def on(self, machine: Machine) -> int:
        """How many of them one machine carries."""
        limits = [machine.usable_bytes // self.memory_bytes, int(machine.cpus // self.cpus)]
        return min([*limits, machine.gpus // self.gpus] if self.gpus else limits)


HEAD = Pods(1, 0.25, HEAD_BYTES)


@dataclass(frozen=True, slots=True)
class Sizes:
    """A deployment worked out; `config` has dtype, shards, slots, CPUs and GPUs filled in."""

    config: DeploymentConfig
    gateway: Pods
    attention: Pods
    experts: Pods
    notes: tuple[str, ...]  # for the operator, a line each


def work_out(config: DeploymentConfig, checkpoint: Checkpoint, machines: Machines) -> Sizes:
    """Choose what the configuration leaves open. Raises ConfigError where it cannot fit."""
    experts = n_experts(checkpoint.config)
    check_experts_stored(checkpoint, experts)
    check_tokenizer(checkpoint, config)
    config = _with_gpus(config, machines)
    dtype = choose_dtype(
        frozenset(), bool(config.attention.gpus or config.pool.gpus), config.model.dtype
    )
    config = _with(config, "model", dtype=dtype)
    one_slot = _needs(_with(config, "pool", slots_per_layer=1), checkpoint, experts)
    attention = _attention_memory(config, one_slot, machines.attention)
    room = _slot_room(config, one_slot, machines, attention)
    config = _with_pool(config, experts, room)
    needs = _needs(config, checkpoint, experts)
    return _placed(config, needs, attention, machines)


def _with(config: DeploymentConfig, section: str, **values: Any) -> DeploymentConfig:
    inner = getattr(config, section).model_copy(update=values)
    return config.model_copy(update={section: inner})


def _needs(config: DeploymentConfig, checkpoint: Checkpoint, experts: int) -> MemoryNeeds:
    return estimate_memory(checkpoint, config, n_experts=experts, dtype=config.model.dtype)


def _with_gpus(config: DeploymentConfig, machines: Machines) -> DeploymentConfig:
    """One GPU for each actor whose machines have some, unless the configuration says otherwise."""
    for section, machine in (
        ("attention", machines.attention),
        ("pool", machines.experts or machines.attention),
    ):
        asked = getattr(config, section)
        gpus = asked.gpus if "gpus" in asked.model_fields_set else float(machine.gpus > 0)
        if gpus not in (0, 1) or gpus > machine.gpus:
            raise ConfigError(
                f"{section}.gpus is {gpus:g}, its machines have {machine.gpus} GPUs; an actor "
                f"here uses one whole GPU or none. Set {section}.gpus to 0 or 1, or name machines "
                "with GPUs."
            )
        config = _with(config, section, gpus=gpus)
    return config


def _attention_memory(config: DeploymentConfig, needs: MemoryNeeds, machine: Machine) -> int:
    """Bytes of an attention pod. Raises ConfigError if its weights have no room."""
    if not config.attention.gpus:
        pod = needs.attention_bytes + RAY_BYTES
    else:
        pod = ATTENTION_PROCESS_BYTES + CUDA_HOST_BYTES + RAY_BYTES
        if (left := _kv_room(config, needs, machine)) < LEAST_KV_BYTES:
            raise ConfigError(
                f"attention does not fit its GPU: {gib(int(machine.gpu_memory_gib * GIB))}, of "
                f"which its weights take {gib(needs.attention_weight_bytes)}, and "
                f"{gib(max(0, left))} would be left for the KV cache (at least "
                f"{gib(LEAST_KV_BYTES)}). An attention replica is one engine on one GPU: use "
                "larger GPUs, or a quantised checkpoint."
            )
    if pod > machine.usable_bytes:
        raise ConfigError(
            f"an attention pod needs {gib(pod)} (weights {gib(needs.attention_weight_bytes)}, KV "
            f"cache {gib(needs.kv_cache_bytes)}), its machines have {gib(machine.usable_bytes)} "
            "for pods. Set a smaller attention.kv_cache_gib, model.dtype bfloat16, or use machines "
            "with more memory (attention.memory_gib)."
        )
    return pod


def _kv_room(config: DeploymentConfig, needs: MemoryNeeds, machine: Machine) -> int:
    share = config.attention.engine_args.get("gpu_memory_utilization", GPU_SHARE)
    usable = int(machine.gpu_memory_gib * GIB * share)
    return usable - needs.attention_weight_bytes - CUDA_GPU_BYTES


def _slot_room(
    config: DeploymentConfig, one_slot: MemoryNeeds, machines: Machines, attention_bytes: int
) -> int:
    """How many experts of each layer one shard has room for. Raises ConfigError if none."""
    machine = machines.experts or machines.attention
    if config.pool.gpus:
        there = int(machine.gpu_memory_gib * GIB * GPU_SHARE) - CUDA_GPU_BYTES
        what = f"a GPU of {machine.gpu_memory_gib:g} GiB"
    else:
        there = machine.usable_bytes - SHARD_PROCESS_BYTES - RAY_BYTES
        what = f"a machine of {machine.memory_gib:g} GiB"
        if machines.experts is None:
            there -= attention_bytes + HEAD_BYTES + config.gateway.replicas * GATEWAY_BYTES
    room = there // one_slot.shard_weight_bytes
    if room < 1:
        raise ConfigError(
            f"no shard fits on {what}: one expert of each layer takes "
            f"{gib(one_slot.shard_weight_bytes)}, {gib(max(0, there))} are left beside what a "
            "process itself needs. Use machines with more memory, or model.dtype bfloat16."
        )
    return room


def _with_pool(config: DeploymentConfig, experts: int, room: int) -> DeploymentConfig:
    """Shards and slots: as configured if they fit, else the fewest shards that hold everything."""
    pool = config.pool
    if "shards" in pool.model_fields_set or pool.autoscaling:
        shards = pool.shards
    else:
        slots = min(pool.slots_per_layer or room, room, experts)
        shards = max(2, pool.redundancy, -(-experts * pool.redundancy // slots))
    pool = pool.model_copy(update={"shards": shards})
    check_slots(pool, experts)
    slots = pool.slots_for(experts)
    if slots > room:
        raise ConfigError(
            f"pool.shards is {shards}, so each shard holds {slots} of {experts} experts a layer "
            f"(redundancy {pool.redundancy}), but there is room for {room}. Set pool.shards to at "
            f"least {-(-experts * pool.redundancy // room)}, leave it and pool.slots_per_layer "
            "out, or use machines with more memory."
        )
    return _with(config, "pool", shards=shards, slots_per_layer=slots)


def _placed(
    config: DeploymentConfig, needs: MemoryNeeds, attention_bytes: int, machines: Machines
) -> Sizes:
    """Pods with their CPUs, checked against the number of machines."""
    shared, pool = machines.experts is None, config.pool
    machine = machines.experts or machines.attention
    shard_bytes = RAY_BYTES + (
        SHARD_PROCESS_BYTES + CUDA_HOST_BYTES if pool.gpus else needs.shard_bytes
    )
    gateway = Pods(config.gateway.replicas, 0.25, GATEWAY_BYTES)
    shards = (pool.least_shards, pool.most_shards)
    experts = Pods(pool.shards, 1, shard_bytes, int(pool.gpus), shards)
    asked = config.attention
    scaling = asked.autoscaling
    replicas = (scaling.min_replicas, scaling.max_replicas) if scaling else None
    attention = Pods(asked.replicas, 1, attention_bytes, int(asked.gpus), replicas)
    beside = attention.most + experts.most if shared else 0
    attention = _with_cpus(config, "attention", attention, machines.attention, beside)
    experts = _with_cpus(config, "pool", experts, machine, beside)
    config = _with(config, "attention", cpus=float(attention.cpus))
    config = _with(config, "pool", cpus=float(experts.cpus))
    notes = [
        f"attention: {_count(attention)} pods of {gib(attention.memory_bytes)}, weights "
        f"{gib(needs.attention_weight_bytes)}",
        f"experts: {_count(experts)} pods of {gib(experts.memory_bytes)}, each "
        f"{pool.slots_per_layer} experts a layer, weights {gib(needs.shard_weight_bytes)}",
    ]
    if config.attention.gpus:
        notes.append(f"KV cache: {gib(_kv_room(config, needs, machines.attention))} of each GPU")
    if shared:
        notes.append(_machines_needed("machines", [HEAD, gateway, attention, experts], machine))
    else:
        roles = [HEAD, gateway, attention]
        notes.append(_machines_needed("attention machines", roles, machines.attention))
        notes.append(_machines_needed("expert machines", [experts], machine))
    return Sizes(config, gateway, attention, experts, tuple(notes))


def _count(pods: Pods) -> str:
    return f"{pods.least} to {pods.most}" if pods.most > pods.least else f"{pods.count}"


def _with_cpus(
    config: DeploymentConfig, section: str, pods: Pods, machine: Machine, beside: int
) -> Pods:
    """The configured CPUs, or an even part of the machine's for each pod that it can carry."""
    asked = getattr(config, section)
    if "cpus" in asked.model_fields_set and asked.cpus >= 1:
        cpus = asked.cpus
    else:
        carried = beside or max(1, min(pods.on(machine), pods.most))
        cpus = max(1, (machine.cpus - KEPT_CPUS) // carried)
        cpus = min(cpus, MOST_GPU_CPUS) if pods.gpus else cpus
    return replace(pods, cpus=cpus)


def _machines_needed(what: str, roles: list[Pods], machine: Machine) -> str:
    """How many machines the pods take, as a line. Raises ConfigError if there are fewer."""
    for pods in roles:
        if pods.on(machine) < 1:
            raise ConfigError(
                f"{what}: a pod of {pods.cpus:g} CPUs, {gib(pods.memory_bytes)} and {pods.gpus} "
                f"GPUs fits on none of {machine.cpus} CPUs, {gib(machine.usable_bytes)} for pods "
                f"and {machine.gpus} GPUs. Use larger machines, or set smaller cpus."
            )
    needed = max(
        *(-(-pods.most // pods.on(machine)) for pods in roles),
        math.ceil(sum(pods.most * pods.memory_bytes for pods in roles) / machine.usable_bytes),
        math.ceil(sum(pods.most * pods.cpus for pods in roles) / machine.cpus),
        math.ceil(sum(pods.most * pods.gpus for pods in roles) / max(1, machine.gpus)),
    )
    if machine.count is not None and needed > machine.count:
        raise ConfigError(
            f"{what}: {needed} are needed, there are {machine.count}: "
            + ", ".join(f"{p.most} pods at {p.on(machine)} a machine" for p in roles)
            + ". Add machines, or lower attention.replicas or pool.redundancy."
        )
    return (
        f"{what}: {needed} of {machine.memory_gib:g} GiB, {machine.cpus} CPUs, {machine.gpus} GPUs"
    )
