"""The attention deployment: Ray Serve LLM's server around a vLLM engine with remote experts.

This process, a Ray actor, follows the controller; the engine's worker process, which knows no
Ray, gets its tables over the desk's private socket.
"""

import asyncio
import logging
import multiprocessing
import os
from contextlib import aclosing
from typing import Any

from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer

from router.choose import Policy
from services import autoscaling
from services.answers import AnswerLine, ReplyTo
from services.attention.engine import OneProcessEngine, check_engine, engine_is_dead
from services.attention.follower import ControllerFollower
from services.attention.serving import Routes
from services.attention.settings import RemoteSettings
from services.cluster import ControllerClient, check_checkpoint_here, node_name, replica_name
from services.config import DeploymentConfig
from services.forking.launch import python_for
from services.logs import log_to_stderr
from services.paths import run_dir
from services.relayed import RelayedRequest
from services.tracing import start_tracing

log = logging.getLogger(__name__)

ENGINE_POLL_S = 0.1
GIVE_UP_S = 240.0  # a new shard imports vLLM and is filled; requests are told long before
GIVE_UP_RATIO = 4.0
CONFIG_KEY = "expertmesh"
"""Where `LLMConfig.experimental_configs` carries (deployment config, application name)."""


class AttentionServer(LLMServer):
    """One attention replica."""

    async def __init__(self, llm_config: LLMConfig, **options: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        """Ready when the engine is up, which it is when every expert has a replica."""
        config, app = own_settings(llm_config)
        log_to_stderr(config.logs)
        check_checkpoint_here(config.model.folder)
        replica_id, controller = replica_name(), ControllerClient(app)
        endpoint = f"ipc://{run_dir(config) / f'feed-{replica_id[-16:]}'}"
        keys = await controller.keys()
        self._line = AnswerLine(host=node_name(), keys=keys)
        self._follower = ControllerFollower(
            replica_id,
            controller,
            endpoint=endpoint,
            keys=keys,
            retry_s=config.controller.report_interval_s,
        )
        settings = RemoteSettings(
            feed=endpoint,
            host=node_name(),
            reply_timeout_s=config.router.reply_timeout_s,
            give_up_s=max(GIVE_UP_S, GIVE_UP_RATIO * config.router.lost_expert_deadline_s),
            policy=Policy(config.router.policy),
            threads=config.attention.threads or 0,
            prompt_threads=config.attention.prompt_threads or 0,
            half_batch_tokens=config.attention.half_batch_tokens_used,
            logs=config.logs,
            tracing=config.tracing,
        )
        multiprocessing.set_executable(python_for(config))  # of the engine's process
        llm_config.update_engine_kwargs(additional_config=settings.to_additional_config())
        check_engine()
        await super().__init__(llm_config, engine_cls=OneProcessEngine, **options)
        self._tracing = start_tracing(config.tracing, "attention")
        self._routes = Routes(
            await self.__serve_build_asgi_app__(),
            is_dead=lambda: engine_is_dead(self.engine),
            stranded=lambda: self._follower.stranded,
            lost_gateways=lambda: self._follower.lost_gateways,
            deadline_s=config.router.lost_expert_deadline_s,
            tracing=self._tracing,
        )
        self._follower.is_ready = True
        self._watching = asyncio.create_task(self._end_with_engine(), name="end-with-engine")

    async def _end_with_engine(self) -> None:
        """A replica without an engine goes at once, so that requests go to others."""
        while not engine_is_dead(self.engine):
            await asyncio.sleep(ENGINE_POLL_S)
        log.error("the engine died; this replica ends")
        os._exit(1)

    async def _start_engine(self) -> None:
        """Without the actor in which the base class keeps telemetry, which is off."""
        await self.engine.start()

    async def answer(self, request: RelayedRequest, reply_to: ReplyTo) -> int:
        """Run vLLM's routes on a request that a gateway relays.

        A head, then parts of the body go to the gateway; returns how many these are together.
        """
        n_pieces = 0
        async with aclosing(self._routes.answer(request)) as answers:
            async for answer in answers:
                self._line.send(reply_to, answer)
                n_pieces += 1
        return n_pieces

    async def describe(self) -> dict[str, Any]:
        """The OpenAPI description of the routes that gateways relay."""
        return self._routes.described

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For Serve: how many replicas there should be."""
        return autoscaling.told(self._follower.wanted_replicas)

    async def __del__(self) -> None:
        """Serve's word to stop, when all requests have ended, and Python's."""
        if hasattr(self, "_tracing"):
            await asyncio.to_thread(self._tracing.close)
        await super().__del__()

    async def check_health(self) -> None:
        """Serve restarts the replica when this raises."""
        self._follower.check()
        await super().check_health()


def own_settings(llm_config: LLMConfig) -> tuple[DeploymentConfig, str]:
    """What the app builder put into the configuration for this class."""
    packed = llm_config.experimental_configs[CONFIG_KEY]
    return DeploymentConfig.model_validate(packed["config"]), packed["app"]
