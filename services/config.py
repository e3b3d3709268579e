"""The description of one deployment: what an operator may set, with units, ranges and defaults.

Parsed once, from a YAML file and the command line, before anything starts; every actor is then
given the result. What a wrong value is answered with is in `config_errors`; whether the machine
and the checkpoint can carry the deployment is `deploy.preflight`'s to say.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from router.errors import ConfigError
from services.config_errors import explain, read_yaml, refuse_engine_args, with_overrides

Positive = Annotated[float, Field(gt=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0)]

MAX_RUN_DIR_BYTES = 70  # a unix socket's path ends at 107 bytes; the rest is for the socket's name


class Section(BaseModel):
    """Unknown keys are refused, values are not converted, and nothing changes after parsing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelConfig(Section):
    # Folder of a Hugging Face mixture-of-experts checkpoint (config.json, *.safetensors), the same
    # on every machine; relative to the current directory. None: `up --model` must name it.
    path: str | None = None
    # Model id that clients put into "model". None: the folder's name.
    name: Annotated[str, Field(min_length=1)] | None = None
    # Type of weights and activations. auto: bfloat16 where the CPU (AVX512-BF16, AMX) or a GPU
    # computes it natively, else float32, which is faster on any other CPU.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    # Longest prompt plus answer, tokens, >= 1. None: what the model's config.json says.
    max_model_len: AtLeastOne | None = None
    # Run Python code found in the checkpoint's folder. Off: a checkpoint is data.
    trust_remote_code: bool = False

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        # Actors start in other directories than the operator's shell.
        return None if path is None else str(Path(path).expanduser().absolute())

    @property
    def folder(self) -> Path:
        """The checkpoint's folder. Raises ConfigError if none is set."""
        if self.path is None:
            raise ConfigError(
                "model.path is not set: there is nothing to serve. Set it in the configuration "
                "file, pass --model PATH, or use --demo for the small demo model."
            )
        return Path(self.path)

    @property
    def served_name(self) -> str:
        """The model id that clients use."""
        return self.name or self.folder.name


class AttentionConfig(Section):
    # Serve replicas of the attention part, each one vLLM engine with its own KV cache; >= 1.
    replicas: AtLeastOne = 1
    # Threads of one replica's engine, >= 1. None: worked out from the machine's cores.
    threads: AtLeastOne | None = None
    # Ray CPUs reserved for a replica; a scheduling figure, it does not bind threads.
    cpus: Share = 1.0
    # Ray GPUs reserved for a replica. 0: it runs on the CPU.
    gpus: Share = 0.0
    # KV cache of a replica on a CPU, GiB, > 0. 1 GiB holds some 10^4 tokens of a small model. On a
    # GPU vLLM sizes the cache itself: set engine_args.gpu_memory_utilization instead.
    kv_cache_gib: Positive = 1.0
    # Sequences that a replica decodes together, >= 1; more raise throughput and each token's time.
    max_num_seqs: AtLeastOne = 64
    # Tokens in one engine step, >= 1. None: vLLM's choice.
    max_num_batched_tokens: AtLeastOne | None = None
    # Further arguments of vLLM's engine (AsyncEngineArgs) and of its API server (tool_call_parser,
    # chat_template, …) by name. Those that the platform manages are refused.
    engine_args: dict[str, Any] = Field(default_factory=dict)

    @field_validator("engine_args")
    @classmethod
    def _unmanaged(cls, engine_args: dict[str, Any]) -> dict[str, Any]:
        refuse_engine_args(engine_args)
        return engine_args


class PoolConfig(Section):
    # Expert shards (Serve replicas of the pool), >= 1. Two: the smallest pool that is distributed.
    shards: AtLeastOne = 2
    # Experts of one layer that a shard has room for, >= 1. None: just enough,
    # ceil(experts * redundancy / shards). More leave room to copy hot or lost experts.
    slots_per_layer: AtLeastOne | None = None
    # Distinct shards that hold each expert, 1 to `shards`. 1: no expert is held twice, and a dead
    # shard's experts are loaded again from disk while requests wait; 2: they go on at once.
    redundancy: AtLeastOne = 1
    # Threads of one shard's kernel, >= 1. None: worked out from the machine's cores.
    threads: AtLeastOne | None = None
    # Ray CPUs reserved for a shard; a scheduling figure, it does not bind threads.
    cpus: Share = 1.0
    # Ray GPUs reserved for a shard. 0: it runs on the CPU.
    gpus: Share = 0.0

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
        return self.slots_per_layer or -(-n_experts * self.redundancy // self.shards)


class RouterConfig(Section):
    # Which replica of an expert a row goes to. least_tokens: the least loaded one, the only choice
    # that follows the load; one_replica: always the first; even_split: by turns.
    policy: Literal["least_tokens", "one_replica", "even_split"] = "least_tokens"
    # Seconds to wait for a shard's answer before it counts as dead and its rows go elsewhere; > 0.
    # 2: many times a layer's milliseconds, short beside a client's patience.
    reply_timeout_s: Positive = 2.0
    # Seconds that a step waits for an expert that no live shard holds; >= reply_timeout_s.
    # 60: time to load lost experts again from a slow disk.
    lost_expert_deadline_s: Positive = 60.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.lost_expert_deadline_s < self.reply_timeout_s:
            raise ValueError(
                f"lost_expert_deadline_s is {self.lost_expert_deadline_s}, below reply_timeout_s "
                f"{self.reply_timeout_s}; a step would give up before a dead shard is noticed, "
                "so raise the former"
            )
        return self


class ControllerConfig(Section):
    # Seconds between two reports of a shard or an attention replica; > 0. 0.5: a few rebalancing
    # decisions a second at most, at negligible cost.
    report_interval_s: Positive = 0.5
    # Seconds without a report after which a shard counts as dead; > 2 * report_interval_s.
    # 5: a long garbage collection or page fault is not a death.
    lease_s: Positive = 5.0
    # Seconds that starting shards have before the controller calls the start failed; > 0.
    # 300: imports take a minute, reading a large checkpoint several.
    startup_grace_s: Positive = 300.0

    @model_validator(mode="after")
    def _lease_outlives_a_lost_report(self) -> Self:
        if self.lease_s <= 2 * self.report_interval_s:
            raise ValueError(
                f"lease_s is {self.lease_s}, but must exceed twice report_interval_s "
                f"({self.report_interval_s}), or one lost report kills a shard; raise lease_s to "
                f"more than {2 * self.report_interval_s:g}"
            )
        return self


class GatewayConfig(Section):
    # Address that the API listens on. 127.0.0.1: this machine only; 0.0.0.0 opens it to everyone.
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    # TCP port of the API, 1 to 65535.
    port: Annotated[int, Field(ge=1, le=65535)] = 8000


class LimitsConfig(Section):
    # Requests that one attention replica works on at once, >= 1. 256: four full batches.
    max_ongoing_requests: AtLeastOne = 256
    # Requests that wait in the gateway for a replica, >= 0; further ones are told to come back.
    max_queued_requests: Annotated[int, Field(ge=0)] = 512


class TransportConfig(Section):
    # How rows reach a shard. auto: unix sockets on the same host, encrypted tcp to others;
    # ipc: unix sockets only (one host); tcp: tcp only.
    mode: Literal["auto", "ipc", "tcp"] = "auto"
    # Folder of the unix sockets, at most 70 bytes. None: a new private one under the system's
    # temporary folder.
    run_dir: Annotated[str, Field(min_length=1)] | None = None

    @field_validator("run_dir")
    @classmethod
    def _short(cls, run_dir: str | None) -> str | None:
        if run_dir is not None and (length := len(run_dir.encode())) > MAX_RUN_DIR_BYTES:
            raise ValueError(
                f"the folder's name has {length} bytes, the limit is {MAX_RUN_DIR_BYTES} because "
                "the path of a unix socket is limited; choose a shorter one"
            )
        return run_dir


class RayConfig(Section):
    # Address of a running Ray cluster (host:port, or auto). None: start one on this machine.
    address: Annotated[str, Field(min_length=1)] | None = None
    # CPUs that a Ray started here offers, >= 1. None: enough for what the deployment asks for.
    num_cpus: AtLeastOne | None = None


class DeploymentConfig(Section):
    """One YAML file. Every section may be left out."""

    # Name of the Serve application, and of its actors; [a-z0-9-].
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")] = "expertmesh"
    model: ModelConfig = ModelConfig()
    attention: AttentionConfig = AttentionConfig()
    pool: PoolConfig = PoolConfig()
    router: RouterConfig = RouterConfig()
    controller: ControllerConfig = ControllerConfig()
    gateway: GatewayConfig = GatewayConfig()
    limits: LimitsConfig = LimitsConfig()
    transport: TransportConfig = TransportConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, values: object) -> object:
        # "pool:" with every key commented out is YAML's null; it means the defaults.
        if not isinstance(values, dict):
            return values
        empty = {key for key, value in values.items() if value is None and key in cls.model_fields}
        return {key: value for key, value in values.items() if key not in empty}


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> DeploymentConfig:
    """Read a deployment's description.

    path: a YAML file; None takes every default.
    overrides: dotted key (`pool.shards`) → value; they win over the file.
    Raises ConfigError that names the file or the override, the key, the value and what to write.
    """
    values = with_overrides({} if path is None else read_yaml(path), overrides, path)
    try:
        return DeploymentConfig.model_validate(values)
    except ValidationError as error:
        raise explain(error, DeploymentConfig, path, overrides) from error
