"""Builds the Serve application: which classes, bound to what, with which options.

gateway (OpenAI API) ── attention (one vLLM engine a replica)
                     └─ controller, pool (one shard a replica)
"""

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.deployment import Application
from ray.serve.llm import LLMConfig

from services.attention.engine_args import cpu_engine_args
from services.attention.plugin import LOAD_FORMAT
from services.attention.server import CONFIG_KEY, AttentionServer
from services.checkpoint import read_checkpoint
from services.cluster import CONTROLLER
from services.config import DeploymentConfig
from services.controller import Controller
from services.experts.shard import ExpertShard
from services.gateway import build_gateway
from services.transport.keys import make_keys

ROOT = Path(__file__).parents[1]
MANY = 10_000  # control calls are short; none of them should queue in Serve


def deploy(config: DeploymentConfig) -> None:
    """Hand the application to Serve; returns before it is ready. `config` is fully worked out."""
    serve.run_many(
        [serve.RunTarget(build_app(config), name=config.name, route_prefix="/")],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def build_app(config: DeploymentConfig) -> Application:
    """The application of one deployment."""
    controller = serve.deployment(
        Controller,
        name=CONTROLLER,
        num_replicas=1,
        max_ongoing_requests=MANY,
        ray_actor_options={"num_cpus": 0, "runtime_env": _environment()},
        health_check_period_s=2,
    ).bind(config, make_keys())
    pool = serve.deployment(
        ExpertShard,
        name="ExpertShard",
        num_replicas=config.pool.shards,
        ray_actor_options={
            "num_cpus": config.pool.cpus,
            "num_gpus": config.pool.gpus,
            "runtime_env": _environment(config.pool.threads or 1),
        },
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
    ).bind(config, config.name)
    return build_gateway(
        _llm_config(config),
        controller=controller,
        pool=pool,
        options={
            "num_replicas": 1,
            "max_ongoing_requests": MANY,
            "ray_actor_options": {"num_cpus": 0, "runtime_env": _environment()},
        },
    )


def _llm_config(config: DeploymentConfig) -> LLMConfig:
    attention, model = config.attention, config.model
    on_gpu = attention.gpus > 0
    engine: dict[str, Any] = {
        "load_format": LOAD_FORMAT,
        "dtype": model.dtype,
        "max_model_len": model.max_model_len,
        "trust_remote_code": model.trust_remote_code,
        "max_num_seqs": attention.max_num_seqs,
        "max_num_batched_tokens": attention.max_num_batched_tokens,
        "enforce_eager": True,
    }
    if not on_gpu:
        engine["kv_cache_memory_bytes"] = round(attention.kv_cache_gib * 2**30)
        engine |= cpu_engine_args(read_checkpoint(model.folder).config)
    engine |= attention.engine_args
    return LLMConfig(
        model_loading_config={"model_id": model.served_name, "model_source": str(model.folder)},
        server_cls=AttentionServer,
        engine_kwargs={key: value for key, value in engine.items() if value is not None},
        placement_group_config={"bundles": [{"CPU": attention.cpus, "GPU": attention.gpus}]}
        if on_gpu
        else {"bundles": [{"CPU": attention.cpus}]},
        deployment_config={
            "num_replicas": attention.replicas,
            "max_ongoing_requests": config.limits.max_ongoing_requests,
            "max_queued_requests": config.limits.max_queued_requests,
            "ray_actor_options": {"num_cpus": 0},
            "health_check_period_s": 5,
        },
        runtime_env=_environment(attention.threads or 1),
        experimental_configs={
            "stream_batching_interval_ms": 0,
            CONFIG_KEY: {"config": config.model_dump(), "app": config.name},
        },
        log_engine_metrics=False,
    )


def _environment(threads: int | None = None) -> dict[str, Any]:
    """The processes' environment; threads wait asleep, not spinning, while rows are away."""
    variables = {"PYTHONPATH": str(ROOT)}
    if threads is not None:
        variables |= {
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "passive",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
        }
    return {"env_vars": variables}
