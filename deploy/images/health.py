"""The images' health check: exit code 0 if the API on this machine answers /health with 200."""

import os
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 4.0


def is_healthy(port: int) -> bool:
    """Ask the API on the loopback address."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(0 if is_healthy(int(os.environ.get("EXPERTMESH_PORT", "8000"))) else 1)
