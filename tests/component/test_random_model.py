"""The benchmark's random checkpoint, with fewer layers and experts than it has."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deploy.random_model import RECIPE_FILE, Experts, build_random_model
from router.errors import ConfigError
from services.checkpoint import n_experts, n_experts_per_token, read_checkpoint


def ignore(_: str) -> None:
    return


FEW = Experts(8, 256, "float32")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("deploy.random_model.LAYERS", 2)
    return build_random_model(tmp_path / "model", seed=3, experts=FEW, progress=ignore)


def test_transformers_finds_every_tensor_and_no_other(folder: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        logits = model(torch.tensor([[300, 900, 1200]])).logits
    assert logits.shape == (1, 3, 2048)
    assert torch.isfinite(logits).all()


def test_its_experts_are_found(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    assert (n_experts(checkpoint.config), n_experts_per_token(checkpoint.config)) == (8, 4)
    assert 0 < checkpoint.routed_bytes < checkpoint.total_bytes


def test_every_token_of_the_vocabulary_is_text(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 2048
    assert tokenizer.decode(tokenizer("Hello there")["input_ids"]) == "Hello there"
    assert all(token.startswith(" ") for token in tokenizer.batch_decode([[300], [1000], [2047]]))


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    def weights(of: Path) -> bytes:
        return b"".join(file.read_bytes() for file in sorted(of.glob("*.safetensors")))

    same = build_random_model(tmp_path / "same", seed=3, experts=FEW, progress=ignore)
    other = build_random_model(tmp_path / "other", seed=4, experts=FEW, progress=ignore)
    assert weights(same) == weights(folder)
    assert weights(other) != weights(folder)


def test_it_is_built_once_and_made_anew_for_another_seed(folder: Path) -> None:
    lines: list[str] = []
    build_random_model(folder, seed=3, experts=FEW, progress=lines.append)
    build_random_model(folder, seed=4, experts=FEW, progress=lines.append)
    assert lines == [f"random model is ready in {folder}", f"random model written to {folder}"]
    assert '"seed": 4' in (folder / RECIPE_FILE).read_text()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(ConfigError, match="holds something else than a random model"):
        build_random_model(tmp_path, progress=ignore)
    assert (tmp_path / "mine").exists()
