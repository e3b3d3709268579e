"""The deployment's description: what is accepted, and what an operator reads when it is not."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from router.errors import ConfigError
from services.config import ControllerConfig, DeploymentConfig, PoolConfig, load_config

CONFIGS = sorted((Path(__file__).parents[2] / "deploy" / "configs").glob("*.yaml"))


def refusal(tmp_path: Path, text: str, **overrides: object) -> str:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    message = str(caught.value)
    assert message.count("\n") == message.count(f"{file}") - 1, message
    return message.replace(f"{file}", "mine.yaml")


def test_every_default_is_valid() -> None:
    assert load_config(None, {}) == DeploymentConfig()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_shipped_example_loads(file: Path) -> None:
    assert load_config(file, {"model.path": "anything"}).model.served_name


def test_there_are_shipped_examples() -> None:
    assert {"demo.yaml", "gpu.yaml", "large.yaml", "reference.yaml", "two-replicas.yaml"} <= {
        file.name for file in CONFIGS
    }


def test_reference_example_has_every_key_at_its_default() -> None:
    reference = next(file for file in CONFIGS if file.name == "reference.yaml")
    assert yaml.safe_load(reference.read_text()) == DeploymentConfig().model_dump()


def test_file_sets_values(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("pool:\n  shards: 4\nattention:\n  cpus: 2\n")
    config = load_config(file, {})
    assert (config.pool.shards, config.attention.cpus, config.gateway.port) == (4, 2.0, 8000)


def test_override_wins_over_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("pool: {shards: 4, redundancy: 2}\n")
    config = load_config(file, {"pool.shards": 8, "attention.engine_args.seed": 7})
    assert (config.pool.shards, config.pool.redundancy) == (8, 2)
    assert config.attention.engine_args == {"seed": 7}


@pytest.mark.parametrize("text", ["", "pool:\n  # shards: 3\n", "# only a comment\n"])
def test_empty_file_or_section_means_defaults(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    assert load_config(file, {}) == DeploymentConfig()


def test_model_path_becomes_absolute_and_names_the_model() -> None:
    config = load_config(None, {"model.path": "some/folder"})
    assert config.model.folder == Path.cwd() / "some" / "folder"
    assert config.model.served_name == "folder"
    assert load_config(None, {"model.path": "x", "model.name": "y"}).model.served_name == "y"


def test_missing_model_path_says_how_to_give_one() -> None:
    with pytest.raises(ConfigError, match=r"model\.path is not set.*--model PATH.*--demo"):
        _ = DeploymentConfig().model.folder


def test_config_cannot_be_changed_after_parsing() -> None:
    config: Any = DeploymentConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.pool.shards = 3


@pytest.mark.parametrize(
    ("experts", "redundancy", "shards", "slots"), [(8, 1, 2, 4), (8, 2, 3, 6), (64, 1, 7, 10)]
)
def test_slots_default_to_just_enough(
    experts: int, redundancy: int, shards: int, slots: int
) -> None:
    pool = PoolConfig(shards=shards, redundancy=redundancy)
    assert pool.slots_for(experts) == slots


def test_slots_that_were_set_are_kept() -> None:
    assert PoolConfig(slots_per_layer=3).slots_for(8) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pool: {shrads: 3}", 'unknown key pool.shrads: 3; did you mean "shards"?'),
        ("pol: {shards: 3}", "unknown key pol: {'shards': 3}; did you mean \"pool\"?"),
        (
            "gateway: {zzz: 3}",
            "unknown key gateway.zzz: 3; known are: body_timeout_s, host, ",
        ),
        ("pool: {shards: 0}", "pool.shards is 0; it should be greater than or equal to 1."),
        ("gateway: {port: 70000}", "gateway.port is 70000; it should be less than or equal to"),
        ("gateway: {port: '80'}", "gateway.port is '80'; it should be a valid integer."),
        ("pool: {shards: yes}", "pool.shards is True; it should be a valid integer."),
        ("router: {reply_timeout_s: .inf}", "reply_timeout_s is inf; it should be a finite number"),
        ("router: {reply_timeout_s: 0}", "router.reply_timeout_s is 0; it should be greater than"),
        ("model: {dtype: bfloat61}", "model.dtype is 'bfloat61'; it should be 'auto', 'float32'"),
        ("model: {dtype: bfloat61}", 'did you mean "bfloat16"?'),
        ("pool: 3", "pool is 3, but it is a section. Write a mapping with keys of: shards,"),
        ("pool: {1: 2}", "pool.1 is 1; Keys should be strings."),
        ("name: My App", "name is 'My App'; it should match pattern"),
        ("pool: {redundancy: 3}", "redundancy is 3, but there are only 2 shards"),
        ("pool: {redundancy: 3}", "set shards to at least 3, or redundancy to at most 2."),
        ("controller: {lease_s: 1}", "lease_s is 1.0, but must exceed twice report_interval_s"),
        ("router: {lost_expert_deadline_s: 1}", "lost_expert_deadline_s is 1.0, below reply_tim"),
        ("transport: {run_dir: '/" + 80 * "x" + "'}", "has 81 bytes, the limit is 70"),
        ("- a\n- b", "holds a list, not a mapping of sections."),
        ("pool: {shards: 3", "is not valid YAML:"),
    ],
)
def test_refusal_names_file_key_and_value(tmp_path: Path, text: str, message: str) -> None:
    refused = refusal(tmp_path, text)
    assert refused.startswith("mine.yaml")
    assert message in refused


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "pool: {shards: 0, slots: 3}\ngateway: {port: 0}")
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("model", "x", "model is managed by the platform: set model.path."),
        ("max_num_seqs", 3, "set attention.max_num_seqs."),
        ("load_format", "auto", "load_format is managed by the platform"),
        ("additional_config", {}, "additional_config is managed by the platform"),
        ("enable_expert_parallel", True, "the pool spreads the experts; set pool.shards"),
        ("enable_eplb", True, "the controller places replicas"),
        ("tensor_parallel_size", 2, "tensor_parallel_size is 2, the limit is 1"),
        ("data_parallel_size", 4, "data_parallel_size is 4, the limit is 1"),
        ("enforce_eager", False, "the layer that sends rows to the expert shards is not compiled"),
    ],
)
def test_managed_engine_argument_is_refused(argument: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {f"attention.engine_args.{argument}": value})
    assert message in str(caught.value)
    assert str(caught.value).startswith("command line: attention.engine_args: ")


def test_harmless_engine_arguments_pass() -> None:
    engine_args = {"tensor_parallel_size": 1, "enforce_eager": True, "seed": 1}
    assert load_config(None, {"attention.engine_args": engine_args})


def test_mistake_in_an_override_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("pool: {shards: 4}\n")
    with pytest.raises(ConfigError, match=r"^command line: pool\.shards is 0;"):
        load_config(file, {"pool.shards": 0})


def test_override_below_a_value_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("pool: 3\n")
    with pytest.raises(ConfigError, match=r"pool\.shards cannot be set: pool is 3 in .*mine\.yaml"):
        load_config(file, {"pool.shards": 2})


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist\. Give --config"):
        load_config(tmp_path / "nowhere.yaml", {})


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path, {})


def test_custom_resources_are_refused_where_no_cluster_offers_them() -> None:
    with pytest.raises(ConfigError, match=r"pool\.resources is \{'a': 1\.0\}.*ray\.address"):
        load_config(None, {"pool.resources": {"a": 1.0}})
    assert load_config(None, {"pool.resources": {"a": 1.0}, "ray.address": "auto"})


@pytest.mark.parametrize(
    ("lease_s", "interval_s", "wanted"), [(5.0, 0.5, 4), (1.1, 0.5, 1), (60.0, 1.0, 24)]
)
def test_two_reports_of_those_with_nothing_to_tell_may_be_lost(
    lease_s: float, interval_s: float, wanted: int
) -> None:
    control = ControllerConfig(lease_s=lease_s, report_interval_s=interval_s)
    assert control.quiet_intervals == wanted
    assert wanted == 1 or 2 * wanted * interval_s < lease_s
