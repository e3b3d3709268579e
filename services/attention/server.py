"""The attention deployment: Ray Serve LLM's server around a vLLM engine with remote experts.

This process, a Ray actor, follows the controller; the engine's worker process, which knows no
Ray, gets its tables over the desk's private socket.
"""

from typing import Any

from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer

from router.choose import Policy
from services.attention.follower import ControllerFollower
from services.attention.settings import RemoteSettings
from services.cluster import ControllerClient, node_name, replica_name
from services.config import DeploymentConfig
from services.logs import log_to_stderr
from services.paths import run_dir

CONFIG_KEY = "expertmesh"
"""Where `LLMConfig.experimental_configs` carries (deployment config, application name)."""


class AttentionServer(LLMServer):
    """One attention replica."""

    async def __init__(self, llm_config: LLMConfig, **options: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        """Ready when the engine is up, which it is when every expert has a replica."""
        log_to_stderr()
        config, app = own_settings(llm_config)
        replica_id, controller = replica_name(), ControllerClient(app)
        endpoint = f"ipc://{run_dir(config) / f'feed-{replica_id[-16:]}'}"
        self._follower = ControllerFollower(
            replica_id,
            controller,
            endpoint=endpoint,
            keys=await controller.keys(),
            retry_s=config.controller.report_interval_s,
        )
        settings = RemoteSettings(
            feed=endpoint,
            host=node_name(),
            reply_timeout_s=config.router.reply_timeout_s,
            lost_expert_deadline_s=config.router.lost_expert_deadline_s,
            policy=Policy(config.router.policy),
        )
        llm_config.update_engine_kwargs(additional_config=settings.to_additional_config())
        await super().__init__(llm_config, **options)

    async def check_health(self) -> None:
        """Serve restarts the replica when this raises."""
        self._follower.check()
        await super().check_health()


def own_settings(llm_config: LLMConfig) -> tuple[DeploymentConfig, str]:
    """What the app builder put into the configuration for this class."""
    packed = llm_config.experimental_configs[CONFIG_KEY]
    return DeploymentConfig.model_validate(packed["config"]), packed["app"]
