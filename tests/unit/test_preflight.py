"""The checks before a start: each refusal says what, the value, the limit and what to do."""

import errno
from pathlib import Path

import pytest

from deploy.memory import GIB, check_memory, estimate_memory
from deploy.preflight import preflight, resolve
from deploy.preflight_checks import (
    check_attention,
    check_experts_stored,
    check_format,
    check_port,
    check_resources,
    check_slots,
    check_tokenizer,
)
from router.errors import CheckpointError, ConfigError
from services.checkpoint import Checkpoint, TensorInfo
from services.config import DeploymentConfig, PoolConfig, load_config
from services.hardware import Machine

MACHINE = Machine(frozenset({"avx512f"}), cores=8, available_bytes=64 * GIB, gpus=0)
DENSE = "model.layers.0.self_attn.q_proj.weight"


def checkpoint(path: Path = Path("m"), dtype: str = "BF16", **config: object) -> Checkpoint:
    """1 GiB of attention and 8 experts of 1 GiB, as stored in BF16."""
    names = [f"model.layers.0.mlp.experts.{expert}.up_proj.weight" for expert in range(8)]
    tensors = {DENSE: TensorInfo(DENSE, path / "a", (1024, 512, 1024), "BF16", GIB)}
    for name in names:
        tensors[name] = TensorInfo(name, path / "a", (1024, 512, 1024), dtype, GIB)
    return Checkpoint(path, config, tensors)


def config_of(**overrides: object) -> DeploymentConfig:
    return load_config(None, {"model.path": "m"} | overrides)


def test_actor_memory_follows_slots_and_dtype() -> None:
    config = config_of(**{"pool.shards": 4, "attention.kv_cache_gib": 3.0})
    needs = estimate_memory(checkpoint(), config, n_experts=8, dtype="bfloat16")
    assert needs.shard_weight_bytes == 2 * GIB
    assert needs.attention_weight_bytes == GIB
    assert needs.attention_bytes == pytest.approx(5.2 * GIB)
    assert needs.shard_bytes == pytest.approx(2.7 * GIB)


def test_float32_doubles_weights_stored_in_bfloat16() -> None:
    needs = estimate_memory(checkpoint(), config_of(), n_experts=8, dtype="float32")
    assert (needs.attention_weight_bytes, needs.shard_weight_bytes) == (2 * GIB, 8 * GIB)


def test_quantised_experts_stay_as_stored() -> None:
    needs = estimate_memory(checkpoint(dtype="U8"), config_of(), n_experts=8, dtype="float32")
    assert needs.shard_weight_bytes == 4 * GIB


def test_redundancy_costs_memory() -> None:
    config = config_of(**{"pool.redundancy": 2})
    needs = estimate_memory(checkpoint(), config, n_experts=8, dtype="bfloat16")
    assert needs.shard_weight_bytes == 8 * GIB


def test_too_little_memory_is_told_per_actor() -> None:
    config = config_of()
    needs = estimate_memory(checkpoint(), config, n_experts=8, dtype="bfloat16")
    with pytest.raises(ConfigError) as caught:
        check_memory(needs, config, 6 * GIB)
    message = str(caught.value)
    assert "memory is too small: 12.60 GiB needed, 6.00 GiB available on this machine" in message
    assert "attention replica: 3.20 GiB x 1 (weights 1.00 GiB, KV cache 1.00 GiB" in message
    assert "shard: 4.70 GiB x 2 (weights 4.00 GiB, process 0.70 GiB)" in message
    assert "Set a smaller attention.kv_cache_gib" in message


def test_actors_on_gpus_do_not_count_as_host_memory() -> None:
    config = config_of(**{"pool.gpus": 1, "attention.gpus": 1})
    needs = estimate_memory(checkpoint(), config, n_experts=8, dtype="bfloat16")
    check_memory(needs, config, 0)


def test_too_few_slots_say_how_many_are_needed() -> None:
    with pytest.raises(ConfigError) as caught:
        check_slots(PoolConfig(shards=2, slots_per_layer=3), 8)
    message = str(caught.value)
    assert "pool.slots_per_layer is 3: 2 shards x 3 slots hold 6 replicas a layer" in message
    assert "8 experts x redundancy 1 need 8" in message
    assert "at least 4, pool.shards to at least 3, or leave slots_per_layer out." in message


def test_redundancy_counts_into_the_slots_needed() -> None:
    with pytest.raises(ConfigError, match=r"redundancy 2 need 16.*slots_per_layer to at least 6"):
        check_slots(PoolConfig(shards=3, slots_per_layer=4, redundancy=2), 8)


def test_more_slots_than_experts_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"is 9, but a layer has 8 experts.*at most 8\."):
        check_slots(PoolConfig(slots_per_layer=9), 8)


@pytest.mark.parametrize("shards", range(1, 12))
def test_default_slots_are_always_enough(shards: int) -> None:
    for redundancy in range(1, shards + 1):
        check_slots(PoolConfig(shards=shards, redundancy=redundancy), 8)


def test_quantised_experts_without_amx_are_refused_by_format() -> None:
    stored = checkpoint(dtype="F8_E4M3", quantization_config={"quant_method": "fp8"})
    with pytest.raises(ConfigError) as caught:
        check_format(stored, frozenset({"avx512f"}))
    message = str(caught.value)
    assert "the experts are stored in format fp8 (F8_E4M3)" in message
    assert "need a CPU with AMX (flag amx_tile), which this one lacks" in message


def test_quantised_experts_with_amx_pass() -> None:
    stored = checkpoint(dtype="F8_E4M3", quantization_config={"quant_method": "fp8"})
    check_format(stored, frozenset({"amx_tile"}))


def test_format_of_the_attention_part_alone_does_not_matter() -> None:
    check_format(checkpoint(quantization_config={"quant_method": "fp8"}), frozenset())


def test_attention_that_does_not_run_on_cpus_is_refused() -> None:
    check_attention(checkpoint(model_type="deepseek_v3"))
    with pytest.raises(ConfigError, match=r"deepseek_v4: .*does not run on CPUs.*attention\.gpus"):
        check_attention(checkpoint(model_type="deepseek_v4"))


def test_model_whose_experts_cannot_be_told_is_refused() -> None:
    stored = checkpoint()
    only_dense = Checkpoint(stored.path, {}, {DENSE: stored.tensors[DENSE]})
    with pytest.raises(CheckpointError, match=r"config\.json says 8 experts, but no tensor's name"):
        check_experts_stored(only_dense, 8)


def test_config_of_another_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"weights of expert 7, but .* 4 experts \(0 to 3\)"):
        check_experts_stored(checkpoint(), 4)


def test_missing_tokenizer_is_refused_unless_it_is_elsewhere(tmp_path: Path) -> None:
    stored = checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no tokenizer \(none of tokenizer\.json,"):
        check_tokenizer(stored, config_of())
    check_tokenizer(stored, config_of(**{"attention.engine_args.tokenizer": "other"}))
    (tmp_path / "tokenizer.json").write_text("{}")
    check_tokenizer(stored, config_of())


def test_missing_cpus_are_told_with_the_sum() -> None:
    config = config_of(**{"attention.replicas": 2, "attention.cpus": 2, "pool.shards": 3})
    with pytest.raises(ConfigError) as caught:
        check_resources(config, cpus=4, gpus=0)
    message = str(caught.value)
    assert "Ray has 4 CPUs, the deployment asks for 7: 2 attention replicas x 2" in message
    assert "3 shards x 1, others 0. Lower attention.cpus or pool.cpus" in message


def test_missing_gpus_are_told() -> None:
    with pytest.raises(ConfigError, match="Ray has 1 GPUs, the deployment asks for 2:"):
        check_resources(config_of(**{"pool.gpus": 1}), cpus=99, gpus=1)


def test_exactly_enough_resources_pass() -> None:
    check_resources(config_of(), cpus=4, gpus=0, other_cpus=1)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EADDRINUSE, "gateway.port 80 on 127.0.0.1 is taken by another process. Stop it"),
        (errno.EACCES, "gateway.port 80 is reserved for root. Choose one of 1024 to 65535"),
        (errno.EADDRNOTAVAIL, "gateway.host '127.0.0.1' is not an address of this machine"),
    ],
)
def test_port_that_cannot_be_bound_is_refused(code: int, message: str) -> None:
    def bind(host: str, port: int) -> None:
        raise OSError(code, "no")

    with pytest.raises(ConfigError) as caught:
        check_port("127.0.0.1", 80, bind)
    assert message in str(caught.value)


def test_free_port_passes() -> None:
    check_port("127.0.0.1", 80, lambda host, port: None)


def for_prompts(resolved: DeploymentConfig) -> tuple[int | None, int]:
    """Threads, and tokens of a step that is cut in two."""
    return resolved.attention.prompt_threads, resolved.attention.half_batch_tokens_used


def test_resolving_fills_in_what_was_left_open() -> None:
    resolved = resolve(config_of(), MACHINE, 8)
    assert resolved.model.dtype == "float32"
    assert (resolved.attention.threads, resolved.pool.threads) == (4, 4)
    assert for_prompts(resolved) == (8, 0)
    assert resolved.pool.slots_per_layer == 4


def test_resolving_keeps_what_was_set() -> None:
    config = config_of(
        **{"model.dtype": "bfloat16", "attention.threads": 3, "pool.slots_per_layer": 5}
    )
    resolved = resolve(config, MACHINE, 8)
    assert (resolved.model.dtype, resolved.attention.threads) == ("bfloat16", 3)
    assert for_prompts(resolved) == (3, 512)
    assert resolved.pool.slots_per_layer == 5


def test_threads_on_a_cluster_follow_the_reserved_cpus() -> None:
    config = config_of(**{"ray.address": "auto", "attention.cpus": 6, "pool.cpus": 0})
    resolved = resolve(config, MACHINE, 8)
    assert (resolved.attention.threads, resolved.pool.threads) == (6, 1)
    assert for_prompts(resolved) == (6, 512)


def test_preflight_refuses_a_missing_folder_first(tmp_path: Path) -> None:
    config = config_of(**{"model.path": str(tmp_path / "no")})
    with pytest.raises(CheckpointError, match="does not exist"):
        preflight(config, MACHINE)
