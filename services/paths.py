"""Where a deployment keeps its sockets."""

import os
import tempfile
from pathlib import Path

from router.errors import ConfigError
from services.config import DeploymentConfig

# Where a Ray that is told nothing else writes.
_RAY_TEMP = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
RAY_LOGS = _RAY_TEMP / "ray" / "session_latest" / "logs"


def run_dir(config: DeploymentConfig) -> Path:
    """A folder only this user may enter: `transport.run_dir`, or one named after the deployment.

    Raises ConfigError if another user owns it, or owns the folder that ours all lie in.
    """
    if config.transport.run_dir is not None:
        return _private(Path(config.transport.run_dir))
    return _private(_ours() / config.name)


def proxy_dir() -> Path:
    """The same for Serve's proxies, which serve all deployments of a host.

    The dot keeps it apart from deployments' names. Raises ConfigError like `run_dir`.
    """
    return _private(_ours() / ".proxies")


def _ours() -> Path:
    return _private(Path(tempfile.gettempdir()) / f"expertmesh-{os.getuid()}")


def _private(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = folder.lstat().st_uid
    if owner != os.getuid():
        raise ConfigError(
            f"{folder} belongs to user {owner}, not to {os.getuid()}: the sockets in it would not "
            "be private. Remove it, or set transport.run_dir to a folder of your own."
        )
    folder.chmod(0o700)
    return folder
