"""Everything of vLLM's insides that the platform touches, in one place and for one version.

The attention side replaces what `RoutedExperts` computes with; the expert side builds one
`RoutedExperts` at a time with as many experts as it has slots. `check_vllm` says which version
this was written for when something is not as expected.
"""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
import vllm
from vllm.config import VllmConfig
from vllm.distributed import parallel_state
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.fused_moe.prepare_finalize.no_dp_ep import (
    MoEPrepareAndFinalizeNoDPEPModular,
)
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.layers.fused_moe.runner.shared_experts import SharedExperts
from vllm.model_executor.model_loader.utils import get_model_architecture
from vllm.platforms import CpuArchEnum, current_platform
from vllm.v1.attention import selector
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput

from router.errors import EngineError

VLLM_VERSION = "0.32.0"
EXPECTED_METHODS = {
    (RoutedExperts, "_get_quant_method"): "prefix quant_config moe_config",
    (RoutedExperts, "_ensure_moe_quant_config_init"): "",
    (RoutedExperts, "get_expert_weights"): "",
    (CPURouter, "__init__"): (
        "top_k global_num_experts use_grouped_topk num_expert_group topk_group renormalize "
        "scoring_func routed_scaling_factor e_score_correction_bias custom_routing_function "
        "hash_indices_table eplb_state"
    ),
    (CPUUnquantizedExperts, "apply"): (
        "output hidden_states w1 w2 topk_weights topk_ids activation global_num_experts expert_map "
        "a1q_scale a2_scale workspace13 workspace2 expert_tokens_meta apply_router_weight_on_input"
    ),
}
EXPECTED_FIELDS = {  # what `services.attention.step_worker` reads of a step
    SchedulerOutput: {"scheduled_new_reqs", "num_scheduled_tokens", "finished_req_ids"},
    NewRequestData: {"req_id", "sampling_params"},
}
EXPECTED_KERNELS = {  # of a CPU's, by the first of their arguments; `norms` and `rotary` call them
    "rms_norm": ["out", "input", "weight", "epsilon"],
    "fused_add_rms_norm": ["input", "residual", "weight", "epsilon"],
    "rotary_embedding": ["positions", "query", "key", "head_size", "cos_sin_cache", "is_neox"],
}
EXPECTED_BFLOAT16_KERNELS = {  # where `has_bfloat16_alone`; `latent`, `linears` and `packed`
    "decode_attention_cpu": ["query", "k_buffer", "v_buffer", "output"],
    "extend_attention_cpu": ["q_extend", "k_extend", "v_extend", "o_extend"],
    "bmm_cpu": ["out", "mat1", "mat2", "is_vnni", "scale"],
    "concat_and_cache_mla_cpu": ["kv_c_normed", "k_pe", "kv_cache", "slot_mapping"],
    "convert_weight_packed": ["weight"],
    "weight_packed_linear": ["out", "mat1", "mat2", "bias", "is_vnni"],
    "fused_experts_cpu": ["out", "hidden_states", "w1", "w2", "topk_weights", "topk_ids"],
}
EXPECTED_ARGUMENTS = ("layer_name", "params_dtype", "moe_config", "quant_config")


def check_vllm() -> None:
    """Raise EngineError naming both versions if vLLM's insides are not those we know."""
    found: list[str] = []
    for (kind, name), wanted in EXPECTED_METHODS.items():
        method = getattr(kind, name, None)
        if method is None or list(inspect.signature(method).parameters)[1:] != wanted.split():
            found.append(f"{kind.__name__}.{name}({wanted})")
    for data, fields in EXPECTED_FIELDS.items():
        known = {field.name for field in dataclasses.fields(data)}
        found += [f"{data.__name__}.{name}" for name in sorted(fields - known)]
    arguments = list(inspect.signature(RoutedExperts.__init__).parameters)[1:5]
    if (
        tuple(arguments) != EXPECTED_ARGUMENTS
        or "expert_map_manager" not in inspect.signature(RoutedExperts.__init__).parameters
    ):
        found.append("RoutedExperts.__init__ arguments")
    if not isinstance(getattr(parallel_state, "_groups", None), dict):
        found.append("parallel_state._groups")
    if current_platform.is_cpu():
        current_platform.import_kernels()
        kernels = EXPECTED_KERNELS | (EXPECTED_BFLOAT16_KERNELS if has_bfloat16_alone() else {})
        missing = (item for item in kernels.items() if not _has(*item))
        found += [f"_C.{name}{tuple(wanted)}" for name, wanted in missing]
    if not hasattr(selector, "_cached_get_attn_backend"):
        found.append("selector._cached_get_attn_backend")
    if found:
        raise EngineError(
            f"vLLM {vllm.__version__} differs from {VLLM_VERSION}, for which ExpertMesh was "
            f"written: {', '.join(found)}. Install vLLM {VLLM_VERSION}."
        )


def _has(kernel: str, arguments: list[str]) -> bool:
    operator = getattr(torch.ops._C, kernel, None)
    if operator is None:
        return False
    names = [argument.name for argument in operator.default._schema.arguments]
    return names[: len(arguments)] == arguments


@contextmanager
def built_as(kinds: Mapping[type[Any], type[Any]]) -> Iterator[None]:
    """While open, layers of these kinds are built as those; what is registered already stays.

    Uses vLLM's out-of-tree registration, and undoes it afterwards.
    """
    ours = {kind: own for kind, own in kinds.items() if kind.__name__ not in op_registry_oot}
    for kind, own in ours.items():
        kind.register_oot(own, name=kind.__name__)
    try:
        yield
    finally:
        for kind in ours:
            op_registry_oot.pop(kind.__name__, None)


@contextmanager
def routed_experts_as(
    vllm_config: VllmConfig, make: Callable[[type[RoutedExperts]], type[RoutedExperts]]
) -> Iterator[None]:
    """While open, the model's every kind of `RoutedExperts` is built as `make(kind)`.

    The model's module is imported first, so that kinds of its own (gpt-oss has one) are known.
    """
    check_vllm()
    get_model_architecture(vllm_config.model_config)
    kinds, found = [RoutedExperts], dict[str, type[RoutedExperts]]()
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        found.setdefault(kind.__name__, kind)
    with built_as({kind: make(kind) for kind in found.values()}):
        yield


def has_bfloat16_alone() -> bool:
    """Whether this is a CPU with AVX-512's bfloat16 and without AMX.

    vLLM has kernels for it and does not take them; with AMX it does.
    """
    return (
        current_platform.is_cpu()
        and current_platform.get_cpu_architecture() == CpuArchEnum.X86
        and torch.cpu._is_avx512_bf16_supported()
        and not torch.cpu._is_amx_tile_supported()
    )


def forget_attention_backends() -> None:
    """What vLLM has resolved in this process, so that its registry is asked again."""
    selector._cached_get_attn_backend.cache_clear()


def moe_runners(model: torch.nn.Module) -> list[MoERunner]:
    """The MoE layers of the model in the order of its modules, which is that of its layers."""
    return [m for m in model.modules() if isinstance(m, MoERunner)]


def close_lone_groups() -> None:
    """Close the process groups that this process is alone in, once the model is built.

    vLLM makes fourteen; gloo has a thread for each that wakes up a hundred times a second, in
    every engine and shard. In their place is the default group, which is of one as well.
    """
    default = torch.distributed.group.WORLD
    for reference in parallel_state._groups.values():
        group = reference()
        if group is None or group.world_size > 1 or group.cpu_group is default:
            continue
        group.destroy()
        group.cpu_group = group.device_group = default
        group.destroy = lambda: None


NO_OUTPUTS: Final = (None, None)


def exchange_outputs(
    shared_experts: SharedExperts, outputs: Sequence[torch.Tensor | None]
) -> list[torch.Tensor | None]:
    """Take what the shared experts keep for vLLM's runner, and put this in its place."""
    kept = list(shared_experts._output)
    shared_experts._output[:] = outputs
    return kept


class RemoteMethod(FusedMoEMethodBase):
    """A "quantisation method" without weights: what it computes is computed elsewhere."""

    mk_can_overlap_shared_experts = True  # we run the shared experts between send and receive
    supports_internal_mk = True
    topk_indices_dtype = torch.int32
    is_monolithic = False

    def create_weights(self, layer: torch.nn.Module, *_args: Any, **_kwargs: Any) -> None:
        """Create nothing: the experts' weights are in the pool."""

    def get_fused_moe_quant_config(self, layer: torch.nn.Module) -> None:
        return None

    def maybe_roundup_sizes(
        self, hidden_size: int, intermediate_size_per_partition: int, *_args: Any
    ) -> tuple[int, int]:
        return hidden_size, intermediate_size_per_partition

    def apply(self, layer: torch.nn.Module, **tensors: Any) -> torch.Tensor:
        raise EngineError(f"{layer} ran before it was connected to the pool")


def slot_experts(
    layer: RoutedExperts, arguments: tuple[tuple[Any, ...], dict[str, Any]], n_slots: int
) -> RoutedExperts:
    """A fresh `RoutedExperts` like `layer`, but of a model that has `n_slots` experts.

    arguments: what `layer` was built with. Weights are allocated on the current default device
    and are not initialised. Call inside `set_current_vllm_config`.
    """
    args, kwargs = list(arguments[0]), dict(arguments[1])
    moe_config = copy.copy(args[2])
    manager = copy.copy(kwargs["expert_map_manager"])
    moe_config.num_experts = moe_config.num_logical_experts = n_slots
    moe_config.num_local_experts = n_slots
    manager.global_num_experts = manager._local_num_experts = n_slots
    manager._expert_map = None
    args[2], kwargs["expert_map_manager"] = moe_config, manager
    return type(layer)(*args, **kwargs)


Compute = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Rows [P, H], weights [P, 1] float32 and slots [P, 1] int32 to rows [P, H]."""


def computing(experts: RoutedExperts) -> Compute:
    """How loaded experts are called.

    vLLM's layers around them prepare, allocate and finalise for all devices and formats. For
    unquantised experts on a CPU nothing of that is needed, and they are called directly.
    """
    alone = experts_alone(experts)
    if alone is None:
        return within_layers(experts)
    nothing = torch.empty(0)
    same = {
        "w1": experts.w13_weight,
        "w2": experts.w2_weight,
        "activation": experts.activation,
        "global_num_experts": experts.global_num_experts,
        "expert_map": experts.expert_map,
        "a1q_scale": None,
        "a2_scale": None,
        "workspace13": nothing,
        "workspace2": nothing,
        "expert_tokens_meta": None,
        "apply_router_weight_on_input": experts.apply_router_weight_on_input,
    }

    def compute(rows: torch.Tensor, weights: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(rows)
        alone.apply(output=out, hidden_states=rows, topk_weights=weights, topk_ids=slots, **same)
        return out

    return compute


def within_layers(experts: RoutedExperts) -> Compute:
    """The call with all that vLLM has around its kernel."""
    return lambda rows, weights, slots: experts.quant_method.apply(
        layer=experts,
        x=rows,
        topk_weights=weights,
        topk_ids=slots,
        shared_experts=None,
        shared_experts_input=None,
    )


def experts_alone(experts: RoutedExperts) -> CPUUnquantizedExperts | None:
    """The kernel, if nothing around it is needed."""
    kernel = experts.quant_method.moe_kernel
    if kernel is None or type(kernel.prepare_finalize) is not MoEPrepareAndFinalizeNoDPEPModular:
        return None
    alone = kernel.fused_experts
    is_plain = isinstance(alone, CPUUnquantizedExperts) and alone.expects_unquantized_inputs
    return alone if is_plain else None
