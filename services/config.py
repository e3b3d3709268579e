"""The description of one deployment: what an operator may set, with units, ranges and defaults.

Parsed once, from a YAML file and the command line, before anything starts; every actor is then
given the result. What a wrong value is answered with is in `config_errors`; whether the machine
and the checkpoint can carry the deployment is `deploy.preflight`'s to say.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from router.errors import ConfigError
from services.config_actors import AttentionConfig, PoolConfig
from services.config_base import AtLeastOne, Positive, Section
from services.config_errors import explain, read_yaml, with_overrides
from services.config_gateway import GatewayConfig, LimitsConfig, MonitoringConfig
from services.config_watch import LogsConfig, TracingConfig

__all__ = ["AttentionConfig", "DeploymentConfig", "PoolConfig", "load_config"]

MAX_RUN_DIR_BYTES = 70  # a unix socket's path ends at 107 bytes; the rest is for the socket's name


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
    # Seconds between two reports of a shard, gateway or attention replica; > 0. 0.5: a few
    # rebalancing decisions a second at most. Shards and gateways that have nothing to tell wait for
    # up to two fifths of lease_s.
    report_interval_s: Positive = 0.5
    # Seconds without a report after which a shard counts as dead; > 2 * report_interval_s.
    # 5: a long garbage collection or page fault is not a death.
    lease_s: Positive = 5.0
    # Seconds that starting shards have before the controller calls the start failed; > 0.
    # 300: imports take a minute, reading a large checkpoint several.
    startup_grace_s: Positive = 300.0
    # Seconds between two looks at whether another placement of the experts would pay; > 0. None:
    # experts move only when shards come or go, or `deploy rebalance` asks. 10: a load that has
    # shifted is followed within a minute.
    rebalance_interval_s: Positive | None = 10.0
    # Seconds after which a routed row counts half in the loads that placements follow; > 0.
    # 15: enough rows to go by, and what was hot a minute ago is forgotten.
    load_half_life_s: Positive = 15.0
    # Seconds of the present load within which a rebalance must save more rows than its moves cost;
    # > 0. 300: a load that lasts for minutes is worth following, one that flickers is not.
    rebalance_payback_s: Positive = 300.0

    @property
    def quiet_intervals(self) -> int:
        """Intervals between two reports of those with nothing to tell; two may be lost."""
        return max(1, int(0.4 * self.lease_s / self.report_interval_s))

    @model_validator(mode="after")
    def _lease_outlives_a_lost_report(self) -> Self:
        if self.lease_s <= 2 * self.report_interval_s:
            raise ValueError(
                f"lease_s is {self.lease_s}, but must exceed twice report_interval_s "
                f"({self.report_interval_s}), or one lost report kills a shard; raise lease_s to "
                f"more than {2 * self.report_interval_s:g}"
            )
        return self


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
    monitoring: MonitoringConfig = MonitoringConfig()
    logs: LogsConfig = LogsConfig()
    tracing: TracingConfig = TracingConfig()
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

    @model_validator(mode="after")
    def _resources_of_a_cluster(self) -> Self:
        for key, section in (
            ("attention", self.attention),
            ("pool", self.pool),
            ("gateway", self.gateway),
        ):
            if section.resources and self.ray.address is None:
                raise ValueError(
                    f"{key}.resources is {section.resources}, but a Ray that is started here has "
                    "no custom resources; remove it, or join a cluster with ray.address"
                )
        return self


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
