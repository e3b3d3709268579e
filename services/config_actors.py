"""The sections of a deployment's description that size its actors: attention replicas and shards.

Part of `config`, which see for how sections are written.
"""

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from services.config_base import AtLeastOne, Count, Positive, Ratio, Resources, Section, Share
from services.config_errors import refuse_engine_args


class AttentionAutoscaling(Section):
    # Bounds of the number of replicas, 1 <= min_replicas <= max_replicas.
    min_replicas: AtLeastOne = 1
    max_replicas: AtLeastOne = 2
    # Requests in a replica's engine, running and waiting, that are aimed at; > 0. 32: half of
    # max_num_seqs, so that a burst finds room while another replica starts.
    target_requests: Positive = 32.0
    # Part of a replica's KV cache in use that is aimed at, above 0 to 1. 0.8: at 1 vLLM preempts.
    target_kv_cache_ratio: Ratio = 0.8
    # Seconds that a need for more must last; >= 0. 5: a start takes longer than that anyway.
    grow_after_s: Share = 5.0
    # Seconds without need for as many, >= 0. 300: an engine takes a minute to start.
    shrink_after_s: Share = 300.0
    # Seconds that a replica which is stopped has to finish its requests; > 0.
    drain_timeout_s: Positive = 600.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas is {self.min_replicas}, above max_replicas {self.max_replicas}; "
                "lower the one or raise the other"
            )
        return self


class AttentionConfig(Section):
    # Serve replicas of the attention part, each one vLLM engine with its own KV cache; >= 1. With
    # autoscaling: how many there are at first.
    replicas: AtLeastOne = 1
    # Threads of one replica's engine, >= 1. None: worked out from the machine's cores.
    threads: AtLeastOne | None = None
    # Its threads in a step of 128 tokens and more, which reads prompts, >= 1. None: if `threads` is
    # set, as many; else all of the cores that the replicas and the shards of a machine share.
    prompt_threads: AtLeastOne | None = None
    # Ray CPUs reserved for a replica; a scheduling figure, it does not bind threads.
    cpus: Share = 1.0
    # Ray GPUs reserved for a replica. 0: it runs on the CPU.
    gpus: Share = 0.0
    # Further Ray resources reserved for a replica, name → amount > 0: it runs only on hosts that
    # offer them (ray start --resources='{"attention": 1}').
    resources: Resources = Field(default_factory=dict)
    # KV cache of a replica on a CPU, GiB, > 0. 1 GiB holds some 10^4 tokens of a small model. On a
    # GPU vLLM sizes the cache itself: set engine_args.gpu_memory_utilization instead.
    kv_cache_gib: Positive = 1.0
    # Sequences that a replica decodes together, >= 1; more raise throughput and each token's time.
    max_num_seqs: AtLeastOne = 64
    # Tokens in one engine step, >= 1. None: vLLM's choice.
    max_num_batched_tokens: AtLeastOne | None = None
    # On a CPU, a step of so many tokens and of at least two requests is computed in two halves in
    # turn: one's experts compute while the other's attention does. 0: none is. 512: gains with one
    # shard on a host and costs little with as many as there are cores. 128 gains where shards have
    # cores to themselves. Not done with several replicas, which keep shards busy for each other,
    # nor where prompt_threads is more than threads, which gains more; `up` says which it is.
    half_batch_tokens: Count = 512
    # Further arguments of vLLM's engine (AsyncEngineArgs) and of its API server (tool_call_parser,
    # chat_template, …) by name. Those that the platform manages are refused.
    engine_args: dict[str, Any] = Field(default_factory=dict)

    # None: `replicas` all the time. Else as many as there are requests for.
    autoscaling: AttentionAutoscaling | None = None

    @model_validator(mode="after")
    def _starts_within_bounds(self) -> Self:
        scaling = self.autoscaling
        if scaling and not scaling.min_replicas <= self.replicas <= scaling.max_replicas:
            raise ValueError(
                f"replicas is {self.replicas}, outside autoscaling's bounds "
                f"{scaling.min_replicas} to {scaling.max_replicas}; set it to one of these"
            )
        return self

    @property
    def half_batch_tokens_used(self) -> int:
        """0 if there may be several replicas, or shards' cores are used meanwhile."""
        borrows = (self.prompt_threads or 1) > (self.threads or 1)
        return self.half_batch_tokens if self.most_replicas == 1 and not borrows else 0

    @property
    def most_replicas(self) -> int:
        """That there may ever be."""
        return self.autoscaling.max_replicas if self.autoscaling else self.replicas

    @field_validator("engine_args")
    @classmethod
    def _unmanaged(cls, engine_args: dict[str, Any]) -> dict[str, Any]:
        refuse_engine_args(engine_args)
        return engine_args


class PoolAutoscaling(Section):
    # Bounds of the number of shards, redundancy <= min_shards <= max_shards. Each shard has slots
    # for its part of the smallest pool, so min_shards is what a shard's memory follows from.
    min_shards: AtLeastOne = 2
    max_shards: AtLeastOne = 4
    # Part of its time that a shard should compute, above 0 to 1: the rows that come, against the
    # rows that it was seen to do in that time. 0.6: waiting grows steeply above.
    target_busy_ratio: Ratio = 0.6
    # Requests waiting at a shard on average that are aimed at; > 0. 1: one is computed, one waits.
    target_queue: Positive = 1.0
    # Seconds that a need for more must last; >= 0. 5: a start takes longer than that anyway.
    grow_after_s: Share = 5.0
    # Seconds without need for as many, >= 0. 120: a shard that comes back is filled from disk.
    shrink_after_s: Share = 120.0
    # Seconds that a shard which is stopped has until others hold its experts; > 0. Then it goes.
    drain_timeout_s: Positive = 600.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_shards > self.max_shards:
            raise ValueError(
                f"min_shards is {self.min_shards}, above max_shards {self.max_shards}; lower the "
                "one or raise the other"
            )
        return self


class PoolConfig(Section):
    # Expert shards (Serve replicas of the pool), >= 1. Two: the smallest pool that is distributed.
    # With autoscaling: how many there are at first.
    shards: AtLeastOne = 2
    # Experts of one layer that a shard has room for, >= 1. None: just enough,
    # ceil(experts * redundancy / shards), of the fewest shards with autoscaling. More leave room
    # to copy hot or lost experts.
    slots_per_layer: AtLeastOne | None = None
    # Distinct shards that hold each expert, 1 to `shards`. 1: no expert is held twice, and a dead
    # shard's experts are loaded again from disk while requests wait; 2: they go on at once.
    redundancy: AtLeastOne = 1
    # Threads of one shard's kernel at most, >= 1; where one is about as fast, it takes one. None:
    # by the machine's cores.
    threads: AtLeastOne | None = None
    # Ray CPUs reserved for a shard; a scheduling figure, it does not bind threads.
    cpus: Share = 1.0
    # Ray GPUs reserved for a shard. 0: it runs on the CPU.
    gpus: Share = 0.0
    # Further Ray resources reserved for a shard, as attention.resources.
    resources: Resources = Field(default_factory=dict)
    # Shards that one host may have at most, >= 1. None: they are spread as far as Ray finds room.
    # 1 with redundancy 2: no host takes both replicas of an expert with it.
    max_shards_per_host: AtLeastOne | None = None
    # None: `shards` all the time. Else as many as the experts' load asks for.
    autoscaling: PoolAutoscaling | None = None

    @property
    def least_shards(self) -> int:
        """That there may be, but for those that died."""
        return self.autoscaling.min_shards if self.autoscaling else self.shards

    @property
    def most_shards(self) -> int:
        """That there may ever be."""
        return self.autoscaling.max_shards if self.autoscaling else self.shards

    @model_validator(mode="after")
    def _starts_within_bounds(self) -> Self:
        if not self.least_shards <= self.shards <= self.most_shards:
            raise ValueError(
                f"shards is {self.shards}, outside autoscaling's bounds {self.least_shards} to "
                f"{self.most_shards}; set it to one of these"
            )
        if self.redundancy > self.least_shards and self.autoscaling:
            raise ValueError(
                f"redundancy is {self.redundancy}, but autoscaling.min_shards is "
                f"{self.least_shards}, too few to hold distinct replicas; set min_shards to at "
                f"least {self.redundancy}"
            )
        return self

    @model_validator(mode="after")
    def _enough_shards(self) -> Self:
        if self.redundancy > self.shards:
            raise ValueError(
                f"redundancy is {self.redundancy}, but there are only {self.shards} shards to "
                f"hold distinct replicas; set shards to at least {self.redundancy}, or redundancy "
                f"to at most {self.shards}"
            )
        return self

    def slots_for(self, n_experts: int) -> int:
        """Slots in each layer of each shard, for a model of `n_experts` experts a layer."""
        return self.slots_per_layer or -(-n_experts * self.redundancy // self.least_shards)
