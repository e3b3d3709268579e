"""Tiny random checkpoints of real mixture-of-experts architectures, for tests of exact routing.

Every expert has its own weights, so that a row computed by the wrong expert changes the output; the
gate and the vocabulary head are wide, so that near ties are rare (of 320 greedy tokens measured,
two led by less than 0.001; the mean lead is 1).
Built from a seed alone, without a network. Chat in English is the demo model's job, not theirs.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from tests.support.families import BOS, EOS, FAMILIES, MAX_POSITIONS, PAD, VOCAB

__all__ = ["FAMILIES", "make_checkpoint", "save_tokenizer"]

SPECIAL_TOKENS = ("<bos>", "<eos>", "<pad>")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)

# What the tokenizer is trained on: the same text gives the same vocabulary.
CORPUS = (
    "A router spreads the tokens of every layer over the replicas of each expert.",
    "The attention part of the model and its experts run in different actors.",
    "Rows in equal rows out: every token and choice is answered exactly once, whatever dies.",
    "A shard that dies in the middle of a layer is dropped from the step at once.",
    "Tables are immutable and versioned; a step ends with the table that it began with.",
    "The quick brown fox jumps over the lazy dog while 0123456789 sheep sleep.",
    "What is the capital of France? The capital of France is Paris, on the river Seine.",
    "def combine(rows, weights): return (rows * weights[..., None]).sum(dim=1)",
)


def make_checkpoint(
    family: str,
    folder: Path,
    *,
    dtype: str = "float32",
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
) -> Path:
    """Write a random checkpoint with its tokenizer into `folder` and return it.

    The same arguments give the same bytes. sizes: of the configuration, where they are not to be
    the family's. Raises KeyError for an unknown family.
    """
    from transformers import AutoModelForCausalLM

    config = FAMILIES[family]()
    for key, size in (sizes or {}).items():
        setattr(config, key, size)
    model = AutoModelForCausalLM.from_config(config)
    _randomize(model, seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def _randomize(model: torch.nn.Module, seed: int) -> None:
    """Give every weight of `model` its own value from `seed`, by name order."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(_weights(model)):
            tensor.copy_(_random_like(name, tensor, generator))


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    # A gate's selection bias is a buffer, and part of the checkpoint.
    yield from ((n, b) for n, b in model.named_buffers() if n.endswith("e_score_correction_bias"))


def _random_like(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Normal values whose spread keeps activations near 1, wider where a choice must be clear."""
    values = torch.randn(tensor.shape, generator=generator)
    if "norm" in name:
        return 1.0 + 0.1 * values
    if tensor.dim() == 1:
        return 0.1 * values
    if "embed_tokens" in name:
        return values
    # Fused experts are [E, in, out] here and [E, out, in] there: the smaller side serves for both.
    fan_in = tensor.shape[1] if tensor.dim() == 2 else min(tensor.shape[1:])
    return values * (_gain(name) / math.sqrt(fan_in))


def _gain(name: str) -> float:
    if "lm_head" in name:
        return 4.0  # logits of spread 4: the best token leads the second by about 1
    if any(part in name for part in (".gate.weight", "router")):
        return 2.0  # gate logits of spread 2: the chosen experts differ from token to token
    if any(part in name for part in ("down_proj", "w2", "output_linear")):
        return 2.0  # the MLP's product is below 1: what the experts add must not be lost
    return 1.0


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of `VOCAB` entries with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL_TOKENS[BOS],
        eos_token=SPECIAL_TOKENS[EOS],
        pad_token=SPECIAL_TOKENS[PAD],
        model_max_length=MAX_POSITIONS,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
