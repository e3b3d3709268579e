"""Our log lines in processes that others set up: Ray's actors and vLLM's workers."""

import logging
import sys

PACKAGES = ("router", "services", "monitoring")
FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def log_to_stderr(level: int = logging.INFO) -> None:
    """Write what our packages log, once, to this process's stderr, which Ray keeps in a file."""
    for name in PACKAGES:
        logger = logging.getLogger(name)
        if logger.handlers:
            continue
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(FORMAT))
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
