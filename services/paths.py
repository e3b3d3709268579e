"""Where a deployment keeps its sockets."""

import os
import tempfile
from pathlib import Path

from services.config import DeploymentConfig


def run_dir(config: DeploymentConfig) -> Path:
    """A folder only this user may enter: `transport.run_dir`, or one named after the deployment."""
    if config.transport.run_dir is not None:
        folder = Path(config.transport.run_dir)
    else:
        folder = Path(tempfile.gettempdir()) / f"expertmesh-{os.getuid()}" / config.name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder
