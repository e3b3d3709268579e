"""The overlays in k8s/: what their sizes are worked out from, and their rendered text.

`python -m tests.support.overlays` writes the sizes again.
"""

import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes.render import K8S, RenderOptions, files, overlays, sizes_of
from tests.support.hollow import DEMO, QWEN3_30B, make_hollow

ROOT = Path(__file__).parents[2]
OVERLAYS = overlays()
CRDS = ROOT.parent / "shared" / "kuberay"

Document = dict[str, Any]


def options_for(overlay: str, folder: Path) -> RenderOptions:
    """As an operator would call `render` for the overlay; writes its model to `folder`."""
    config_file: Path | None = None
    if overlay == "local-cpu":
        model = make_hollow(folder / "demo-moe", DEMO)
        config_file = ROOT / "deploy" / "configs" / "demo.yaml"
        overrides: dict[str, Any] = {"model.dtype": "float32"}
    else:
        model = make_hollow(folder / "Qwen3-30B-A3B", QWEN3_30B)
        overrides = {"pool.redundancy": 2, "pool.shards": 4}
        overrides |= {"attention.replicas": 2, "gateway.replicas": 2}
    overrides["model.path"] = str(model)
    return RenderOptions(overlay, config_file, overrides, None, {}, folder / "out")


def expected_files(overlay: str, folder: Path) -> dict[str, str]:
    """What `render` would write into the overlay itself."""
    machines = K8S / "overlays" / overlay / "machines.yaml"
    return files(sizes_of(options_for(overlay, folder), machines))


def kustomize(folder: Path) -> list[Document]:
    """The documents that kubectl makes of a folder; skips where there is no kubectl."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on the path: install Kubernetes' command-line client")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@cache
def rendered(overlay: str) -> list[Document]:
    """The documents of one overlay."""
    return kustomize(K8S / "overlays" / overlay)


def find(documents: list[Document], kind: str, name: str = "expertmesh") -> Document:
    """The one document of that kind and name; a ConfigMap's name ends with a hash."""
    (found,) = (
        d
        for d in documents
        if d["kind"] == kind and re.sub("-config-[a-z0-9]+$", "", d["metadata"]["name"]) == name
    )
    return found


def pod_groups(documents: list[Document]) -> dict[str, Document]:
    """Group's name → its spec, the head's among them."""
    cluster = find(documents, "RayService")["spec"]["rayClusterConfig"]
    return {"head": cluster["headGroupSpec"]} | {
        group["groupName"]: group for group in cluster["workerGroupSpecs"]
    }


def main() -> None:
    for overlay in OVERLAYS:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in expected_files(overlay, Path(folder)).items():
                (K8S / "overlays" / overlay / name).write_text(text)


if __name__ == "__main__":
    main()
