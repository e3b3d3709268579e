"""Writes a Kustomize folder for one model: an overlay of k8s/ with its configuration and sizes.

`kubectl apply -k FOLDER` then creates it. What is decided is in `sizes`; how pods look, in k8s/.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.kubernetes.machines import load_machines
from deploy.kubernetes.sizes import Pods, Sizes, work_out
from router.errors import ConfigError
from services.checkpoint import read_checkpoint
from services.config import DeploymentConfig, load_config

K8S = Path(__file__).parents[2] / "k8s"
MODELS = "/models"  # where the volume with the checkpoint is mounted in every pod
KEYS_FILE = "/etc/expertmesh/keys/keys.yaml"  # from the Secret expertmesh-keys
APPLICATION = "expertmesh"  # the Serve application that k8s/base/rayservice.yaml names
GROUPS = ("gateway", "attention", "experts")  # in the order of its worker groups
HEADER = "# Written by `python -m deploy render`; write it again rather than change it.\n"


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """What the command line says."""

    overlay: str
    config_file: Path | None
    overrides: Mapping[str, Any]  # of the configuration
    machines_file: Path | None  # None: the overlay's own
    machine_overrides: Mapping[str, Any]
    out: Path


def overlays() -> list[str]:
    """The overlays that there are."""
    return sorted(folder.parent.name for folder in K8S.glob("overlays/*/kustomization.yaml"))


def render(options: RenderOptions) -> Sizes:
    """Write the folder; returns what was worked out. Raises ConfigError, CheckpointError."""
    overlay = K8S / "overlays" / options.overlay
    sizes = sizes_of(options, overlay / "machines.yaml")
    for name, text in files(sizes).items():
        _write(options.out / name, text)
    base = os.path.relpath(overlay.resolve(), options.out.resolve())
    scales = any(pods.most > pods.least for pods in _roles(sizes).values())
    autoscaling = os.path.relpath(K8S / "autoscaling", options.out.resolve()) if scales else None
    _write(options.out / "kustomization.yaml", kustomization(base, autoscaling))
    return sizes


def sizes_of(options: RenderOptions, default_machines: Path) -> Sizes:
    """Read what the options name, and work out what fits."""
    config = load_config(options.config_file, {"ray.address": "auto", **options.overrides})
    machines = load_machines(options.machines_file or default_machines, options.machine_overrides)
    checkpoint = read_checkpoint(config.model.folder)
    return work_out(in_pods(config), checkpoint, machines)


def in_pods(config: DeploymentConfig) -> DeploymentConfig:
    """The same deployment as its pods see it: paths, addresses, and what steers actors to pods."""
    changes: dict[str, dict[str, Any]] = {
        "model": {
            "path": f"{MODELS}/{config.model.folder.name}",
            "name": config.model.served_name,
        },
        "attention": {"resources": {"expertmesh_attention": 1}},
        "pool": {"resources": {"expertmesh_shard": 1}},
        "gateway": {
            "resources": {"expertmesh_gateway": 0.01},
            "host": "0.0.0.0",
            "port": 8000,
            "keys_file": KEYS_FILE,
        },
        "transport": {"mode": "tcp"} | ({"run_dir": None} if config.transport.run_dir else {}),
        "ray": {"address": "auto"} | ({"num_cpus": None} if config.ray.num_cpus else {}),
    }
    sections = {name: getattr(config, name).model_copy(update=new) for name, new in changes.items()}
    return config.model_copy(update={"name": APPLICATION, **sections})


def files(sizes: Sizes) -> dict[str, str]:
    """What differs from model to model: name → text."""
    return {
        "config.yaml": HEADER + _yaml(sizes.config.model_dump(exclude_unset=True)),
        "sizes.yaml": HEADER + _yaml(list(_changes(sizes))),
        "disruption.yaml": HEADER
        + "---\n".join(
            _yaml(
                {
                    "apiVersion": "policy/v1",
                    "kind": "PodDisruptionBudget",
                    "metadata": {"name": f"expertmesh-{role}"},
                    "spec": {"minAvailable": max(1, pods.least - 1)},
                }
            )
            for role, pods in _roles(sizes).items()
        ),
    }


def kustomization(overlay: str, autoscaling: str | None) -> str:
    """The folder's own file; the folders to build on are relative to it."""
    return HEADER + _yaml(
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "expertmesh",
            "resources": [overlay],
            "components": [autoscaling] if autoscaling else [],
            "configMapGenerator": [
                {"name": "expertmesh-config", "behavior": "replace", "files": ["config.yaml"]}
            ],
            "patches": [
                {"path": "sizes.yaml", "target": {"kind": "RayService", "name": "expertmesh"}},
                {"path": "disruption.yaml"},
            ],
        }
    )


def _roles(sizes: Sizes) -> dict[str, Pods]:
    return dict(zip(GROUPS, (sizes.gateway, sizes.attention, sizes.experts), strict=True))


def _changes(sizes: Sizes) -> list[dict[str, Any]]:
    """The JSON patch of the RayService (RFC 6902); "add" also replaces."""
    changes = []
    for role, pods in _roles(sizes).items():
        group = f"/spec/rayClusterConfig/workerGroupSpecs/{GROUPS.index(role)}"
        values: dict[str, Any] = {
            "replicas": pods.count,
            "minReplicas": pods.least,
            "maxReplicas": pods.most,
            "rayStartParams/num-cpus": f"{int(pods.cpus)}",
            "rayStartParams/num-gpus": f"{pods.gpus}",
            "template/spec/containers/0/resources": _resources(pods),
        }
        changes += [
            {"op": "add", "path": f"{group}/{key}", "value": value} for key, value in values.items()
        ]
    return changes


def _resources(pods: Pods) -> dict[str, dict[str, str]]:
    """Memory is promised and bounded; CPUs are promised only, idle ones may be borrowed."""
    memory, cpu = f"{-(-pods.memory_bytes // 2**20)}Mi", f"{round(pods.cpus * 1000)}m"
    gpus = {"nvidia.com/gpu": str(pods.gpus)} if pods.gpus else {}
    return {
        "requests": {"cpu": cpu, "memory": memory, **gpus},
        "limits": {"memory": memory, **gpus},
    }


def _yaml(value: object) -> str:
    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, width=100)


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be written: {error.strerror}. Name another folder with --out."
        ) from error
