"""Builds the Serve application: which classes, bound to what, with which options.

gateway (OpenAI API) ── attention (one vLLM engine a replica)
                     └─ controller, pool (one shard a replica)
"""

import math
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.deployment import Application
from ray.serve.llm import LLMConfig, build_llm_deployment

from services import autoscaling
from services.attention.engine_args import cpu_engine_args, own_operators
from services.attention.plugin import LOAD_FORMAT
from services.attention.server import CONFIG_KEY, AttentionServer
from services.checkpoint import read_checkpoint
from services.cluster import CONTROLLER
from services.config import AttentionConfig, DeploymentConfig, PoolConfig
from services.controller import Controller
from services.experts.shard import ExpertShard
from services.forking.launch import WAITING, python_for
from services.gateway.deployment import build_gateway
from services.tracing import environment as tracing_environment
from services.transport.keys import make_keys

ROOT = Path(__file__).parents[1]
STEP_WORKER = "services.attention.step_worker.StepWorker"
QUIET = {"enable_access_log": False}
"""A gateway says itself what it was asked; Serve would add a line for each call of each part."""
MANY = 10_000  # control calls are short; none of them should queue in Serve
SLACK_RATIO = 1.25
"""Gateways keep to the limit of an attention replica. Serve counts a request a moment longer, and
one that it turns away for that is tried again after up to half a second, behind all that come then.
"""
ON_HEAD = {"node:__internal_head__": 0.001}
"""Ray's name for its head. Serve's proxy is there: what every request needs dies with no other."""


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
        ray_actor_options=_beside_the_api(config),
        health_check_period_s=2,
        logging_config=QUIET,
    ).bind(config, make_keys())
    pool = serve.deployment(
        ExpertShard,
        name="ExpertShard",
        **_shard_counts(config.pool),
        max_replicas_per_node=config.pool.max_shards_per_host,
        ray_actor_options={
            "num_cpus": config.pool.cpus,
            "num_gpus": config.pool.gpus,
            "resources": config.pool.resources,
            "runtime_env": _environment(config, config.pool.threads or 1),
        },
        health_check_period_s=2,
        logging_config=QUIET,
    ).bind(config, config.name)
    return build_gateway(
        config,
        attention=build_llm_deployment(_llm_config(config)),
        controller=controller,
        pool=pool,
        options={
            "num_replicas": config.gateway.replicas,
            # In a cluster whose machines are told apart, each of the API's carries one.
            "max_replicas_per_node": 1 if config.gateway.resources else None,
            "max_ongoing_requests": MANY,
            "ray_actor_options": _beside_the_api(config),
            "graceful_shutdown_timeout_s": config.gateway.stop_grace_s,
            "logging_config": QUIET,
        },
    )


def _beside_the_api(config: DeploymentConfig) -> dict[str, Any]:
    """Where the gateway and the controller run; neither computes."""
    return {
        "num_cpus": 0,
        "resources": config.gateway.resources or ON_HEAD,
        "runtime_env": _environment(config),
    }


def _llm_config(config: DeploymentConfig) -> LLMConfig:
    attention, model = config.attention, config.model
    most_threads = max(attention.threads or 1, attention.prompt_threads or 1)
    on_gpu = attention.gpus > 0
    engine: dict[str, Any] = {
        "load_format": LOAD_FORMAT,
        "dtype": model.dtype,
        "max_model_len": model.max_model_len,
        "trust_remote_code": model.trust_remote_code,
        "max_num_seqs": attention.max_num_seqs,
        "max_num_batched_tokens": attention.max_num_batched_tokens,
        "enforce_eager": True,
        "worker_cls": STEP_WORKER,
        "otlp_traces_endpoint": config.tracing.endpoint,
    }
    if not on_gpu:
        engine["kv_cache_memory_bytes"] = round(attention.kv_cache_gib * 2**30)
        engine |= cpu_engine_args(read_checkpoint(model.folder).config, model.dtype)
        engine |= own_operators()
    engine |= attention.engine_args
    return LLMConfig(
        model_loading_config={"model_id": model.served_name, "model_source": str(model.folder)},
        server_cls=AttentionServer,
        engine_kwargs={key: value for key, value in engine.items() if value is not None},
        placement_group_config={"bundles": [_bundle(attention)]},
        deployment_config={
            **_replica_counts(attention),
            "max_ongoing_requests": math.ceil(SLACK_RATIO * config.limits.max_ongoing_requests),
            "graceful_shutdown_timeout_s": config.gateway.stop_grace_s,
            "ray_actor_options": {"num_cpus": 0},
            "health_check_period_s": 5,
            "logging_config": QUIET,
        },
        runtime_env=_environment(config, most_threads),
        experimental_configs={
            CONFIG_KEY: {"config": config.model_dump(), "app": config.name},
        },
        log_engine_metrics=False,
    )


def _shard_counts(pool: PoolConfig) -> dict[str, Any]:
    if pool.autoscaling is None:
        return {"num_replicas": pool.shards, "graceful_shutdown_timeout_s": 5}
    drain_s = pool.autoscaling.drain_timeout_s
    bounds = autoscaling.Bounds(pool.least_shards, pool.shards, pool.most_shards, drain_s)
    return autoscaling.options(bounds)


def _replica_counts(attention: AttentionConfig) -> dict[str, Any]:
    scaling = attention.autoscaling
    if scaling is None:
        return {"num_replicas": attention.replicas}
    least, most, drain_s = scaling.min_replicas, scaling.max_replicas, scaling.drain_timeout_s
    return autoscaling.options(autoscaling.Bounds(least, attention.replicas, most, drain_s))


def _bundle(attention: AttentionConfig) -> dict[str, float]:
    """What one replica reserves, by Ray's names."""
    gpus = {"GPU": attention.gpus} if attention.gpus else {}
    return {"CPU": attention.cpus, **gpus, **attention.resources}


def _environment(config: DeploymentConfig, threads: int | None = None) -> dict[str, Any]:
    """The processes' environment; threads wait as `WAITING` says while rows are away."""
    variables = {"PYTHONPATH": str(ROOT), **autoscaling.ENVIRONMENT}
    variables |= tracing_environment(config.tracing, config.name)
    if threads is not None:
        variables |= {
            "OMP_NUM_THREADS": str(threads),
            **WAITING,
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
        }
    return {"env_vars": variables, "py_executable": python_for(config)}
