"""What the RayService's Serve configuration names: `import_path: deploy.kubernetes.app:build`.

Runs in a pod of the cluster. The deployment is described by the same file that `deploy up` reads,
mounted from a ConfigMap; no Ray or vLLM call is made here that needs the cluster.
"""

from pathlib import Path
from typing import Any

from ray.serve.deployment import Application

from deploy.preflight import preflight
from router.errors import ConfigError
from services.app import build_app
from services.config import load_config
from services.hardware import this_machine


def build(args: dict[str, Any]) -> Application:
    """The application of the configuration file `args["config"]`.

    Raises ConfigError or CheckpointError; KubeRay shows it in the RayService's status.
    """
    if set(args) != {"config"} or not isinstance(args["config"], str):
        raise ConfigError(
            f"the application's args are {args!r}; give one, config: the path of the deployment's "
            "file as it is mounted in the pods."
        )
    config = load_config(Path(args["config"]), {})
    if config.ray.address is None:
        raise ConfigError(
            f"{args['config']} leaves ray.address out, but the pods are a Ray cluster already. "
            "Write ray: {address: auto}; `deploy render` does."
        )
    return build_app(preflight(config, this_machine()).config)
