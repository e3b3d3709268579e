"""The tiny checkpoints themselves: what the correctness tests rely on."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.checkpoints import FAMILIES, make_checkpoint

MAX_BYTES = 30_000_000


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return loaded


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_is_small_and_all_its_experts_differ(
    checkpoint: Callable[[str], Path], family: str
) -> None:
    folder = checkpoint(family)
    seen: set[bytes] = set()
    experts = 0
    for name, tensor in weights(folder).items():
        if ".experts." not in name and "_linear" not in name:
            continue
        for expert in tensor if tensor.dim() == 3 else [tensor]:
            seen.add(hashlib.sha256(expert.numpy().tobytes()).digest())
            experts += 1
    assert len(seen) == experts > 0
    assert sum(file.stat().st_size for file in folder.iterdir()) < MAX_BYTES


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    first, again, other = (
        make_checkpoint("mixtral", tmp_path / name, seed=seed)
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    files = ("model.safetensors", "tokenizer.json", "config.json")
    assert [(first / f).read_bytes() for f in files] == [(again / f).read_bytes() for f in files]
    assert (first / files[0]).read_bytes() != (other / files[0]).read_bytes()


def test_the_dtype_is_the_one_asked_for(tmp_path: Path) -> None:
    folder = make_checkpoint("olmoe", tmp_path, dtype="bfloat16")
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_deepseek_v3_carries_a_gate_bias_that_vllm_will_use(
    checkpoint: Callable[[str], Path],
) -> None:
    folder = checkpoint("deepseek_v3")
    config = json.loads((folder / "config.json").read_text())
    assert (config["topk_method"], config["scoring_func"]) == ("noaux_tc", "sigmoid")
    bias = weights(folder)["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert bias.abs().min() > 0


def test_the_tokenizer_keeps_any_text_and_knows_chat(checkpoint: Callable[[str], Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint("mixtral"))
    text = "Grüße an 3 Experten, 你好!"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<bos>[user] Hi\n[assistant] "
