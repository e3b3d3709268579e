"""Every overlay against the schemas of Kubernetes and of KubeRay, with unknown keys refused."""

from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.support.overlays import CRDS, OVERLAYS, find, pod_groups, rendered

KUBERNETES = "1.34"
CUSTOM = {"RayService", "PodMonitor", "PrometheusRule"}

pytestmark = pytest.mark.parametrize("overlay", OVERLAYS)


def test_core_kinds_match_their_schemas(overlay: str) -> None:
    for document in rendered(overlay):
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_pod_templates_match_the_schema_of_pods(overlay: str) -> None:
    for name, group in pod_groups(rendered(overlay)).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}}
        pod["spec"] = group["template"]["spec"]
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_rayservice_matches_kuberays_schema(overlay: str) -> None:
    file = CRDS / "ray.io_rayservices.yaml"
    if not file.is_file():
        pytest.skip("KubeRay's CRDs are not at ../shared/kuberay")
    versions = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    jsonschema.validate(find(rendered(overlay), "RayService"), closed(schema))


def closed(schema: Any) -> Any:
    """The schema with unknown keys refused, which the API server would drop without a word."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        is_whole = set(schema["properties"]) <= {"apiVersion", "kind", "metadata", "spec", "status"}
        if not is_whole:
            schema.setdefault("additionalProperties", False)
    return schema
