"""`doctor`: looks at this machine, or at every host of a cluster, before anything is started."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from deploy.doctor_checks import FAILURE, GOOD, WARNING, Finding, findings
from deploy.preflight import preflight
from deploy.up import ROOT
from router.errors import CheckpointError, ConfigError
from services.config import DeploymentConfig, load_config
from services.hardware import Machine
from services.host_facts import HostFacts, facts_of_cluster, facts_of_this_host

if TYPE_CHECKING:
    from argparse import _SubParsersAction

HELP = "look for what would go wrong: versions, limits, checkpoint, memory, clocks"


def add_parser(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `doctor` to the command line."""
    parser = commands.add_parser("doctor", help=HELP, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", type=Path, help="deployment as a YAML file")
    parser.add_argument("--model", metavar="PATH", help="folder of the checkpoint (model.path)")
    parser.add_argument("--address", metavar="ADDR", help="running Ray cluster, host:port or auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Look and print; returns 1 if something would fail. Raises ConfigError."""
    overrides = {"model.path": arguments.model, "ray.address": arguments.address}
    config = load_config(arguments.config, {k: v for k, v in overrides.items() if v is not None})
    found = examine(config)
    print(as_json(found) if arguments.json else as_text(found), file=out, flush=True)
    return int(any(finding.level == FAILURE for finding in found))


def examine(config: DeploymentConfig) -> list[Finding]:
    """Every finding."""
    address, model = config.ray.address, config.model.path
    if address is None:
        hosts: Sequence[HostFacts] = [facts_of_this_host(model)]
    else:
        from services.ray_session import check_reachable

        check_reachable(address)
        hosts = facts_of_cluster(address, model)
    found = findings(hosts, str(ROOT), config.model.dtype)
    machine = hosts[0].machine if hosts else None
    if address is None and machine is not None:
        found.append(_preflight(config, machine))
    return found


def _preflight(config: DeploymentConfig, machine: Machine) -> Finding:
    """Whether `up` would begin here; without a model its port is all that can be tried."""
    from deploy.preflight_checks import check_port

    try:
        if config.model.path is None:
            check_port(config.gateway.host, config.gateway.port)
            return Finding(GOOD, "", "ports", f"{config.gateway.port} is free")
        checked = preflight(config, machine)
    except (ConfigError, CheckpointError) as error:
        mend = "Do as it says; python -m deploy up would refuse to start."
        return Finding(FAILURE, "", "deployment", str(error), mend)
    resolved = checked.config
    return Finding(
        GOOD,
        "",
        "deployment",
        f"port {resolved.gateway.port} is free, memory suffices; {resolved.model.dtype}, "
        f"{resolved.pool.slots_per_layer} slots a layer on each of {resolved.pool.shards} shards",
    )


def as_json(found: Sequence[Finding]) -> str:
    """One object."""
    healthy = not any(finding.level == FAILURE for finding in found)
    return json.dumps({"healthy": healthy, "findings": [asdict(f) for f in found]}, indent=1)


def as_text(found: Sequence[Finding]) -> str:
    """A line each, what mends it below, and a sum."""
    lines = []
    for finding in found:
        where = f"{finding.host}: " if finding.host else ""
        lines.append(f"{finding.level:8} {finding.what:14} {where}{finding.text}")
        if finding.mend:
            lines.append(f"{'':24}-> {finding.mend}")
    failures = sum(finding.level == FAILURE for finding in found)
    warnings = sum(finding.level == WARNING for finding in found)
    lines.append(f"{len(found)} looked at, {warnings} warnings, {failures} failures")
    return "\n".join(lines)
