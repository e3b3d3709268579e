"""Dense layers in bfloat16, on CPUs with AVX-512's bfloat16 and without AMX.

vLLM 0.32 multiplies there by oneDNN. The kernel that it takes for small weights where there is AMX
needs none: for few rows it is the quicker one, for many hardly slower, and a row's bits do not
depend on the others or on threads (DECISIONS.md). Given to vLLM as the layers' own methods, between
reading weights and preparing them.
"""

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.utils import replace_parameter
from vllm.platforms import current_platform

from services.vllm_hooks import has_bfloat16_alone

INPUTS, OUTPUTS = 32, 16  # numbers; the kernel takes weights of whole multiples of them


def multiply(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [..., I] bfloat16 by packed weights [O, I], and bias [O] added; [..., O] bfloat16."""
    n_outputs, n_inputs = packed.shape
    out = torch.empty(*x.shape[:-1], n_outputs, dtype=x.dtype)
    added = None if bias is None else bias.float()
    rows = x if x.dim() == 2 else x.reshape(-1, n_inputs)
    torch.ops._C.weight_packed_linear(out.view(-1, n_outputs), rows, packed, added, True)
    return out


class PackedLinear(UnquantizedLinearMethod):
    """vLLM's, of a layer whose weights are packed in pairs of rows."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Pack weight [O, I], and leave none, as vLLM does: whoever reads it shall not go on."""
        layer.packed_weight = torch.ops._C.convert_weight_packed(layer.weight)
        replace_parameter(layer, "weight", layer.weight.new_empty(0))

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """See `multiply`."""
        return multiply(x, layer.packed_weight, bias)


class PackedHead(UnquantizedEmbeddingMethod):
    """vLLM's of words, whose weight is looked up in as well and stays."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Nothing yet: most embeddings are only looked up in, and need no packed copy."""
        layer.packed_weight = None

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """See `multiply`; the first time, when vLLM warms up, packs a copy of weight [O, I]."""
        if layer.packed_weight is None:
            layer.packed_weight = torch.ops._C.convert_weight_packed(layer.weight)
        return multiply(x, layer.packed_weight, bias)


def pack_linears(model: torch.nn.Module, config: VllmConfig) -> None:
    """Give a model that has read its weights and not prepared them our methods where they do.

    An operator's own choice of a backend stays, and so does that of AMD's platform plugin.
    """
    if (
        not has_bfloat16_alone()
        or current_platform.is_zen_cpu()
        or config.kernel_config.linear_backend != "auto"
    ):
        return
    vllms = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
    for layer in model.modules():
        if type(getattr(layer, "quant_method", None)) in vllms and _fits(layer):
            is_head = isinstance(layer, VocabParallelEmbedding)
            layer.quant_method = PackedHead() if is_head else PackedLinear()


def _fits(layer: Any) -> bool:
    """Latent attention reads the weights that vLLM marks, and multiplies by them itself."""
    weight = layer.weight
    return bool(
        weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and weight.dim() == 2
        and weight.shape[0] % OUTPUTS == 0
        and weight.shape[1] % INPUTS == 0
        and not getattr(layer, "_cpu_skip_gemm_dispatch", False)
    )
