"""A folder that `deploy render` wrote, as kubectl renders it on top of the overlay."""

import io
from pathlib import Path

import kubernetes_validate
import pytest

from deploy.cli import main
from services.config import load_config
from tests.support.hollow import QWEN3_30B, make_hollow
from tests.support.overlays import ROOT, find, kustomize, pod_groups


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_hollow(tmp_path / "mine", QWEN3_30B)


def run(*words: str) -> tuple[int, str]:
    """`python -m deploy render` with these words; its exit code and what it said."""
    out = io.StringIO()
    return main(["render", *words], out=out, err=out), out.getvalue()


def test_the_folder_renders_with_its_own_sizes_and_configuration(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--overlay", "hybrid", "--model", str(model), "--out", str(out))
    code, said = run(*words, "--machine", "experts.memory_gib=32", "--set", "pool.redundancy=1")
    assert (code, f"kubectl apply -k {out}" in said) == (0, True)
    documents = kustomize(out)
    groups = pod_groups(documents)
    assert groups["experts"]["replicas"] == groups["experts"]["maxReplicas"] == 3
    (tmp_path / "seen.yaml").write_text(find(documents, "ConfigMap")["data"]["config.yaml"])
    config = load_config(tmp_path / "seen.yaml", {})
    assert (config.model.path, config.pool.shards) == ("/models/mine", 3)
    assert find(documents, "PodDisruptionBudget", "expertmesh-experts")["spec"]["minAvailable"] == 2
    cluster = find(documents, "RayService")["spec"]["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"] is False


def test_a_deployment_that_scales_gets_bounds_and_rays_autoscaler(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    example = ROOT / "deploy" / "configs" / "autoscaling.yaml"
    words = ("--overlay", "gpu", "--model", str(model), "--config", str(example))
    code, said = run(*words, "--out", str(out))
    assert (code, "experts: 2 to 4 pods" in said) == (0, True), said
    documents = kustomize(out)
    groups = pod_groups(documents)
    for name, least, most in (("attention", 1, 2), ("experts", 2, 4)):
        assert (groups[name]["minReplicas"], groups[name]["maxReplicas"]) == (least, most)
    cluster = find(documents, "RayService")["spec"]["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"] is True
    head = groups["head"]["template"]["spec"]
    assert "serviceAccountName" not in head  # KubeRay makes one that may change pods
    for name in ("gateway", "attention", "experts"):
        assert groups[name]["template"]["spec"]["automountServiceAccountToken"] is False
    policy = find(documents, "NetworkPolicy", "expertmesh-autoscaler")
    kubernetes_validate.validate(policy, "1.34", strict=True)


def test_what_cannot_fit_is_refused_and_nothing_is_written(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--overlay", "gpu", "--model", str(model), "--out", str(out))
    code, said = run(*words, "--machine", "attention.gpu_memory_gib=2")
    assert code == 2
    assert said.startswith("error: attention does not fit its GPU: 2.00 GiB")
    assert not out.exists()
