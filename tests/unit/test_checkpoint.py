"""Reading a model folder without its weights, and what is said when the folder is not right."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from router.errors import CheckpointError
from services.checkpoint import read_checkpoint

CONFIG = {"architectures": ["TinyMoe"], "model_type": "tiny", "num_experts": 4}
DENSE = "model.layers.0.self_attn.q_proj.weight"
ROUTED = "model.layers.0.mlp.experts.1.up_proj.weight"


def write_safetensors(file: Path, shapes: Mapping[str, list[int]]) -> None:
    """A file of BF16 zeros; the holes keep it small on disk."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * shape[0] * shape[1]
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(file, 8 + len(header) + end)


def write_index(folder: Path, weight_map: Mapping[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files and their index."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(tmp_path / "a.safetensors", {DENSE: [4, 4], ROUTED: [8, 2]})
    write_safetensors(tmp_path / "b.safetensors", {"lm_head.weight": [16, 4]})
    write_index(
        tmp_path,
        {DENSE: "a.safetensors", ROUTED: "a.safetensors", "lm_head.weight": "b.safetensors"},
    )
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    return str(caught.value)


def test_tensors_are_read_from_the_headers(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    assert checkpoint.config == CONFIG
    assert set(checkpoint.tensors) == {DENSE, ROUTED, "lm_head.weight"}
    routed = checkpoint.tensors[ROUTED]
    assert (routed.file.name, routed.shape, routed.dtype) == ("a.safetensors", (8, 2), "BF16")
    assert (routed.n_bytes, routed.n_elements) == (32, 16)


def test_bytes_are_split_by_where_they_live(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    assert (checkpoint.total_bytes, checkpoint.routed_bytes) == (32 + 32 + 128, 32)


def test_folder_without_index_is_read_file_by_file(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    assert len(read_checkpoint(folder).tensors) == 3


def test_second_copy_in_the_makers_own_format_is_left_out(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    write_safetensors(folder / "consolidated.safetensors", {"tok_embeddings.weight": [4, 4]})
    assert "tok_embeddings.weight" not in read_checkpoint(folder).tensors


def test_file_that_the_index_does_not_name_is_left_out(folder: Path) -> None:
    write_safetensors(folder / "extra.safetensors", {"extra": [1, 1]})
    assert "extra" not in read_checkpoint(folder).tensors


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere")
    assert "nowhere does not exist. Give --model (or model.path) the folder" in message


def test_file_in_place_of_a_folder_is_refused(folder: Path) -> None:
    assert "is a file, not a folder." in refusal(folder / "config.json")


def test_folder_without_config_is_refused_and_listed(folder: Path) -> None:
    (folder / "config.json").unlink()
    message = refusal(folder)
    assert "has no config.json; it holds a.safetensors, b.safetensors" in message


@pytest.mark.parametrize("text", ["{", "\x00"])
def test_config_that_is_not_json_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json is not JSON:" in refusal(folder)


def test_config_that_is_not_an_object_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    assert "config.json holds a list, not an object." in refusal(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf"])
def test_other_weight_formats_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"x")
    message = refusal(tmp_path)
    assert "has no *.safetensors file" in message
    assert name in message
    assert "Only safetensors weights are accepted: convert .bin, .pt or .gguf" in message


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "b.safetensors").unlink()
    message = refusal(folder)
    assert (
        "lacks 1 of the 2 files that model.safetensors.index.json names: b.safetensors." in message
    )


@pytest.mark.parametrize("keep", [-1, -100])
def test_truncated_file_is_refused_with_both_sizes(folder: Path, keep: int) -> None:
    file = folder / "b.safetensors"
    needed = file.stat().st_size
    os.truncate(file, needed + keep)
    message = refusal(folder)
    assert "b.safetensors is truncated" in message
    assert f"it has {needed + keep} bytes, its tensors need {needed}." in message


@pytest.mark.parametrize("there", [0, 7, 20])
def test_file_cut_inside_its_header_is_refused(folder: Path, there: int) -> None:
    os.truncate(folder / "a.safetensors", there)
    message = refusal(folder)
    assert "a.safetensors is truncated or not a safetensors file" in message
    assert f"it has {there} bytes" in message


def test_git_lfs_pointer_is_refused(folder: Path) -> None:
    (folder / "a.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha")
    assert "a.safetensors is truncated or not a safetensors file" in refusal(folder)


def test_damaged_header_is_refused(folder: Path) -> None:
    (folder / "a.safetensors").write_bytes((5).to_bytes(8, "little") + b"{abc}")
    assert "a.safetensors has a damaged safetensors header" in refusal(folder)


def test_tensor_that_no_file_holds_is_named(folder: Path) -> None:
    write_index(folder, {DENSE: "a.safetensors", "model.norm.weight": "b.safetensors"})
    message = refusal(folder)
    assert "names 1 of 2 tensors that their file does not hold" in message
    assert "first model.norm.weight in b.safetensors" in message


def test_index_without_a_map_is_refused(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")
    assert 'index.json has no "weight_map"' in refusal(folder)
