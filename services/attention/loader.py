"""Loads everything of a checkpoint but its routed experts, and connects those to the pool.

vLLM calls `load_model` in its worker process. Expert tensors are skipped by name before they
are read; what vLLM builds in their place has no parameters.

The router is imported on first use: it brings numba, and vLLM 0.32's worker, which looks through
all loaded modules while it starts, fails on one of numba's objects.
"""

import logging
from collections.abc import Generator
from contextlib import nullcontext
from typing import Any

import torch
from safetensors import safe_open
from vllm.config import ModelConfig, VllmConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from router.errors import CheckpointError
from services.attention.latent import latent_attention
from services.attention.linears import pack_linears
from services.attention.rotary import flat_rotary
from services.checkpoint import is_routed_expert
from services.lifecycle import give_back_memory, keep_memory, let_others_first
from services.logs import log_to_stderr
from services.vllm_hooks import RemoteMethod, close_lone_groups, moe_runners, routed_experts_as

log = logging.getLogger(__name__)


class AttentionLoader(DefaultModelLoader):
    """`load_format="expertmesh"`; needs `additional_config={"expertmesh": {...}}`."""

    def __init__(self, load_config: LoadConfig) -> None:
        load_config.load_format = "auto"  # the files themselves are ordinary ones
        super().__init__(load_config)
        self.bytes_read = 0
        self.bytes_skipped = 0
        self._vllm_config: VllmConfig | None = None

    def load_model(
        self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = ""
    ) -> torch.nn.Module:
        """The model with remote experts; returns when every expert has a replica."""
        from services.attention.remote_experts import connect_layers
        from services.attention.settings import RemoteSettings

        self._vllm_config = vllm_config
        on_cpu = vllm_config.device_config.device_type == "cpu"
        if on_cpu:
            let_others_first()
        settings = RemoteSettings.parse(vllm_config.additional_config)
        log_to_stderr(settings.logs)
        with (
            routed_experts_as(vllm_config, _without_weights),
            flat_rotary() if on_cpu else nullcontext(),
            latent_attention(vllm_config),
        ):
            model: torch.nn.Module = super().load_model(vllm_config, model_config, prefix)
        log.info(
            "weights loaded: read_bytes=%s skipped_expert_bytes=%s",
            self.bytes_read,
            self.bytes_skipped,
        )
        if not moe_runners(model):
            raise CheckpointError(
                f"{model_config.model} has no mixture-of-experts layer: serve it with vLLM itself"
            )
        if on_cpu:
            close_lone_groups()
            give_back_memory()
            keep_memory()
        connect_layers(model, settings)
        return model

    def load_weights(self, model: torch.nn.Module, model_config: ModelConfig) -> None:
        """Read them, and choose who prepares them."""
        super().load_weights(model, model_config)
        if self._vllm_config is not None:
            pack_linears(model, self._vllm_config)

    def get_all_weights(
        self, model_config: ModelConfig, model: torch.nn.Module
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        """(name, tensor) of everything that is not a routed expert."""
        source = DefaultModelLoader.Source(
            model_config.model,
            model_config.revision,
            fall_back_to_pt=False,
            allow_patterns_overrides=getattr(model, "allow_patterns_overrides", None),
        )
        _, files, _, _ = self._prepare_weights(
            source.model_or_path, None, source.revision, False, source.allow_patterns_overrides
        )
        for name in sorted(files):
            with safe_open(name, framework="pt") as file:
                yield from self._attention_weights(file)

    def _attention_weights(self, file: Any) -> Generator[tuple[str, torch.Tensor], None, None]:
        for name in file.keys():  # noqa: SIM118 (a safetensors file is not a mapping)
            if is_routed_expert(name):
                view = file.get_slice(name)
                self.bytes_skipped += _n_bytes(view.get_shape(), view.get_dtype())
                continue
            tensor = file.get_tensor(name)
            self.bytes_read += tensor.nbytes
            yield name, tensor


def _without_weights(kind: type[RoutedExperts]) -> type[RoutedExperts]:
    def method(
        self: RoutedExperts,
        prefix: str,
        quant_config: QuantizationConfig | None,
        moe_config: FusedMoEConfig,
    ) -> RemoteMethod:
        return RemoteMethod(moe_config)

    return type(kind.__name__, (kind,), {"_get_quant_method": method})


BITS = {"F4": 4, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "BOOL": 8}


def _n_bytes(shape: list[int], dtype: str) -> int:
    bits = BITS.get(dtype) or int("".join(c for c in dtype if c.isdigit()))
    count = 1
    for size in shape:
        count *= size
    return count * bits // 8
