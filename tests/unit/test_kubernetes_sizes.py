"""How many pods of which size a model needs, and the reasons for which it is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes.machines import Machines, load_machines
from deploy.kubernetes.render import RenderOptions, in_pods, render
from deploy.kubernetes.sizes import Sizes, work_out
from deploy.memory import GIB
from router.errors import ConfigError
from services.checkpoint import Checkpoint, read_checkpoint
from services.config import DeploymentConfig, load_config
from tests.support.hollow import QWEN3_30B, make_hollow

GPU = {"memory_gib": 512, "cpus": 96, "gpus": 8, "gpu_memory_gib": 80}
CPU = {"memory_gib": 64, "cpus": 32}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """54 GiB of experts in 128 slots of 0.42 GiB, and 2.9 GiB beside them, in bfloat16."""
    return read_checkpoint(make_hollow(tmp_path_factory.mktemp("hollow") / "qwen", QWEN3_30B))


def sizes(model: Checkpoint, machines: dict[str, Any], **overrides: Any) -> Sizes:
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    config = load_config(None, {"model.path": str(model.path), "ray.address": "auto", **keys})
    return work_out(config, model, Machines.model_validate(machines))


def test_experts_take_as_few_shards_as_hold_them(model: Checkpoint) -> None:
    # 64 GiB x 0.9, less 0.7 for the process and 1.5 for Ray, hold 131 slots: all 128 of a layer.
    found = sizes(model, {"attention": CPU | GPU, "experts": CPU}, pool__redundancy=2)
    assert (found.config.pool.shards, found.config.pool.slots_per_layer) == (2, 128)
    assert found.experts.count == 2
    assert 56 * GIB < found.experts.memory_bytes < 57 * GIB
    found = sizes(model, {"attention": GPU, "experts": CPU | {"memory_gib": 32}})
    assert (found.config.pool.shards, found.config.pool.slots_per_layer) == (3, 43)


def test_a_shard_on_a_gpu_needs_the_gpus_memory_not_the_hosts(model: Checkpoint) -> None:
    found = sizes(model, {"attention": GPU | {"gpu_memory_gib": 24}})
    assert found.config.model.dtype == "bfloat16"
    # 24 GiB x 0.9 less 2 for CUDA hold 46 slots of 0.42 GiB: 3 shards of 43.
    assert (found.config.pool.shards, found.config.pool.slots_per_layer) == (3, 43)
    assert found.experts.memory_bytes < 8 * GIB
    assert (found.experts.gpus, found.attention.gpus) == (1, 1)


def test_cpus_are_divided_among_the_pods_of_a_machine(model: Checkpoint) -> None:
    found = sizes(model, {"attention": GPU, "experts": CPU}, pool__shards=4)
    assert found.attention.cpus == found.config.attention.cpus == 8  # a GPU needs no more
    # 13.5 GiB of weights each: three on a machine, and two CPUs stay for Kubernetes.
    assert found.experts.cpus == found.config.pool.cpus == 10


def test_configured_values_are_kept(model: Checkpoint) -> None:
    found = sizes(model, {"attention": GPU, "experts": CPU}, pool__shards=8, pool__cpus=4)
    assert (found.config.pool.shards, found.experts.cpus) == (8, 4)
    assert found.config.pool.slots_per_layer == 16


def test_notes_tell_the_operator_what_was_found(model: Checkpoint) -> None:
    text = "\n".join(sizes(model, {"attention": GPU, "experts": CPU}, pool__shards=4).notes)
    assert "experts: 4 pods of 15.70 GiB, each 32 experts a layer, weights 13.50 GiB" in text
    assert "expert machines: 2 of 64 GiB, 32 CPUs, 0 GPUs" in text
    assert "KV cache: 67.13 GiB of each GPU" in text


@pytest.mark.parametrize(
    ("machines", "overrides", "reason"),
    [
        ({"attention": GPU, "experts": CPU | {"memory_gib": 2}}, {}, "no shard fits on a machine"),
        ({"attention": GPU | {"gpu_memory_gib": 2}}, {}, "attention does not fit its GPU"),
        ({"attention": GPU, "experts": CPU}, {"pool__gpus": 1.0}, "its machines have 0 GPUs"),
        ({"attention": GPU}, {"pool__gpus": 0.5}, "one whole GPU or none"),
        (
            {"attention": GPU, "experts": CPU | {"memory_gib": 32}},
            {"pool__shards": 2},
            "there is room for 63. Set pool.shards to at least 3",
        ),
        (
            {"attention": GPU, "experts": CPU | {"count": 1}},
            {"pool__redundancy": 2},
            "expert machines: 2 are needed, there are 1: 2 pods at 1 a machine",
        ),
        (
            {"attention": GPU, "experts": CPU},
            {"pool__cpus": 64},
            "a pod of 64 CPUs, 29.20 GiB and 0 GPUs fits on none of 32 CPUs",
        ),
        (
            {"attention": CPU | {"memory_gib": 8}, "experts": CPU | {"memory_gib": 512}},
            {},
            "an attention pod needs 9.44 GiB",
        ),
    ],
)
def test_what_cannot_fit_is_refused_with_the_reason(
    model: Checkpoint, machines: dict[str, Any], overrides: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        sizes(model, machines, **overrides)


def test_a_misspelt_machine_key_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    file = tmp_path / "machines.yaml"
    file.write_text("attention: {memory_gb: 64, cpus: 8}")
    with pytest.raises(ConfigError, match=r'memory_gb: 64; did you mean "memory_gib"'):
        load_machines(file, {})


def test_pods_see_their_own_paths_and_addresses() -> None:
    config = DeploymentConfig.model_validate(
        {"model": {"path": "/somewhere/here/big"}, "ray": {"address": "auto"}, "name": "mine"}
    )
    seen = in_pods(config)
    assert (seen.model.path, seen.model.name) == ("/models/big", "big")
    assert (seen.name, seen.transport.mode, seen.gateway.host) == ("expertmesh", "tcp", "0.0.0.0")
    assert seen.pool.resources == {"expertmesh_shard": 1}


def test_render_writes_a_folder_on_top_of_an_overlay(model: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    options = RenderOptions(
        "hybrid", None, {"model.path": str(model.path)}, None, {"experts.memory_gib": 32}, out
    )
    render(options)
    kustomization = yaml.safe_load((out / "kustomization.yaml").read_text())
    (base,) = kustomization["resources"]
    assert (out / base / "kustomization.yaml").is_file()
    written = load_config(out / "config.yaml", {})
    assert (written.pool.shards, written.model.path) == (3, "/models/qwen")
    patch = {
        item["path"]: item["value"] for item in yaml.safe_load((out / "sizes.yaml").read_text())
    }
    assert patch["/spec/rayClusterConfig/workerGroupSpecs/2/replicas"] == 3


def test_render_without_a_place_to_write_is_refused(model: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    options = RenderOptions(
        "hybrid", None, {"model.path": str(model.path)}, None, {}, tmp_path / "file" / "mine"
    )
    with pytest.raises(ConfigError, match="Name another folder with --out"):
        render(options)
