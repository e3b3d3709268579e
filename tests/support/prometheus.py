"""A real Prometheus on loopback, with the repository's rules and short waits."""

import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

RULES = Path(__file__).parents[2] / "monitoring" / "prometheus"
BINARY = shutil.which("prometheus")
READY_S = 30.0


class Prometheus:
    """Scrapes and evaluates every second."""

    def __init__(self, folder: Path, port: int, targets: dict[str, str]) -> None:
        """targets: job → host:port."""
        (folder / "rules.yml").write_text((RULES / "rules.yml").read_text())
        alerts, n_waits = re.subn(r"for: \w+", "for: 2s", (RULES / "alerts.yml").read_text())
        assert n_waits
        (folder / "alerts.yml").write_text(alerts)
        jobs = []
        for name, target in targets.items():
            # Ray's is a megabyte, which it makes on these two cores
            every_s = "5s" if name == "ray" else "1s"
            jobs.append(
                {
                    "job_name": name,
                    "static_configs": [{"targets": [target]}],
                    "scrape_interval": every_s,
                    "scrape_timeout": every_s,
                }
            )
        config = {
            "global": {"evaluation_interval": "1s"},
            "rule_files": ["rules.yml", "alerts.yml"],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump({**config, "scrape_configs": jobs}))
        self._log = (folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                BINARY or "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)

    def wait_for(self, query: str, timeout_s: float = READY_S) -> list[dict[str, Any]]:
        """The answer to a query once there is one."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            try:
                if found := self.query(query):
                    return found
            except httpx.TransportError:
                assert self._process.poll() is None, Path(self._log.name).read_text()
            time.sleep(0.3)
        raise AssertionError(f"no answer to {query} within {timeout_s:.0f} s")

    def query(self, query: str) -> list[dict[str, Any]]:
        """Series of an instant query: `metric` and `value`."""
        answer = self._client.get("/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", (query, answer)
        return list(answer["data"]["result"])

    def number(self, query: str) -> float:
        """The one value of a query, 0 if there is none."""
        found = self.query(query)
        assert len(found) <= 1, (query, found)
        return float(found[0]["value"][1]) if found else 0.0

    def close(self) -> None:
        """End it."""
        self._client.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
