"""`ExpertKernel` on vLLM's routed experts: its loaders, its quantisation methods, its kernels.

The whole model is built on the meta device for its names and shapes; only the routed experts of
the layers are ever real. A fill goes through a `RoutedExperts` with as many experts as are
loaded: the first fill of a layer becomes the layer, later ones are copied into its slots.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import torch
import vllm
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.utils.torch_utils import set_default_torch_dtype

from router.errors import ShardError
from services.checkpoint import layer_of, n_experts, read_checkpoint
from services.experts.kernel import LoadedSlots
from services.experts.lone_rows import filled_up, rows_stand_alone
from services.experts.packed import packed_experts
from services.experts.weights import ExpertTensors
from services.vllm_hooks import (
    Compute,
    close_lone_groups,
    computing,
    moe_runners,
    routed_experts_as,
    slot_experts,
)

log = logging.getLogger(__name__)

MOST_TRIED = 8  # slots; one whose weights are all zero would show nothing
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class VllmKernel:
    """Slots of one shard."""

    def __init__(self, vllm_config: VllmConfig, n_slots: int) -> None:
        self._config = vllm_config
        self._slots = n_slots
        self.device = torch.device(vllm_config.device_config.device)
        checkpoint = read_checkpoint(Path(vllm_config.model_config.model))
        self._n_experts = n_experts(checkpoint.config)
        self._tensors = ExpertTensors(checkpoint, self._n_experts)
        self._arguments: dict[str, Arguments] = {}
        _ask_for_amx()
        _init_single_process(vllm_config)
        self._model = self._skeleton()
        close_lone_groups()
        self._runners = moe_runners(self._model)
        self._filled: dict[int, RoutedExperts] = {}
        self._compute: dict[int, Compute] = {}
        self._weight_bytes = 0
        self._fills_up = False

    @property
    def n_layers(self) -> int:
        return len(self._runners)

    @property
    def n_slots(self) -> int:
        return self._slots

    @property
    def n_experts(self) -> int:
        """Logical experts of a layer."""
        return self._n_experts

    def _skeleton(self) -> torch.nn.Module:
        """The model without memory, remembering what each routed-experts layer was built with."""
        arguments = self._arguments

        def recording(kind: type[RoutedExperts]) -> type[RoutedExperts]:
            def init(self: RoutedExperts, *args: Any, **kwargs: Any) -> None:
                arguments.setdefault(args[0], (args, kwargs))
                kind.__init__(self, *args, **kwargs)

            return type(kind.__name__, (kind,), {"__init__": init})

        with self._building("meta"), routed_experts_as(self._config, recording):
            return cast(
                torch.nn.Module,
                initialize_model(self._config, model_config=self._config.model_config),
            )

    @contextmanager
    def _building(self, device: str | torch.device) -> Iterator[None]:
        with (
            set_current_vllm_config(self._config),
            set_default_torch_dtype(self._config.model_config.dtype),
            torch.device(device),
        ):
            yield

    @torch.inference_mode()
    def read(self, layer: int, experts: Mapping[int, int]) -> LoadedSlots:
        before = self._tensors.bytes_read
        if layer in self._filled:
            places = list(experts.values())
        else:
            places = [experts.get(slot, -1) for slot in range(self._slots)]
        built = self._build(layer, places)
        return LoadedSlots(layer, dict(experts), built, self._tensors.bytes_read - before)

    @torch.inference_mode()
    def install(self, loaded: LoadedSlots) -> None:
        resident = self._filled.get(loaded.layer)
        if resident is None:
            self._filled[loaded.layer] = loaded.weights
            self._compute[loaded.layer] = computing(loaded.weights)
            self._weight_bytes += sum(w.nbytes for w in loaded.weights.get_expert_weights())
            if len(self._filled) == 1:
                self._try_rows(loaded.layer, list(loaded.experts)[:MOST_TRIED])
            return
        for place, slot in enumerate(loaded.experts):
            _copy_expert(loaded.weights, place, resident, slot)

    def _try_rows(self, layer: int, slots: list[int]) -> None:
        """See to it that a row's bits do not depend on the batch, which depends on the layout."""
        run = partial(self.run, layer)
        model = self._config.model_config
        like = torch.empty(0, dtype=model.dtype, device=self.device)
        for fills_up in (False, True) if self.device.type == "cpu" else (False,):
            self._fills_up = fills_up
            if rows_stand_alone(run, slots, hidden_size=model.get_hidden_size(), like=like):
                return
        self._fills_up = False
        log.warning(
            "bits may depend on placement: vLLM %s, experts in %s: the kernel gives a row other "
            "bits in another batch",
            vllm.__version__,
            model.quantization or model.dtype,
        )

    def _build(self, layer: int, experts: list[int]) -> RoutedExperts:
        """A loaded, packed `RoutedExperts` that holds just `experts`."""
        runner = self._runners[layer]
        skeleton = runner.routed_experts
        with self._building(self.device), packed_experts():
            built = slot_experts(skeleton, self._arguments[skeleton.layer_name], len(experts))
            for parameter in built.parameters():
                parameter.data.zero_()
            runner.routed_experts = built
            try:
                with self._expert_count(len(experts)):
                    self._model.load_weights(  # type: ignore[operator]
                        self._tensors.read(cast(int, layer_of(skeleton.layer_name)), experts)
                    )
            except (KeyError, ValueError, RuntimeError, AttributeError) as error:
                raise ShardError(
                    f"{skeleton.layer_name}: vLLM could not load experts {experts}: {error}"
                ) from error
            finally:
                runner.routed_experts = skeleton
            built.quant_method.process_weights_after_loading(built)
            built._ensure_moe_quant_config_init()
        return built

    @contextmanager
    def _expert_count(self, count: int) -> Iterator[None]:
        """Loaders that ask the model's config how many experts there are hear `count`."""
        config = self._config.model_config.hf_text_config
        keys = [k for k, v in vars(config).items() if "expert" in k and v == self._n_experts]
        keys = [k for k in keys if not k.startswith("_") and "per_tok" not in k]
        for key in keys:
            setattr(config, key, count)
        try:
            yield
        finally:
            for key in keys:
                setattr(config, key, self._n_experts)

    def run(self, layer: int, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        count = rows.shape[0]
        if self._fills_up:
            rows, slots = filled_up(rows, slots)
        padding = self._filled[layer].hidden_size - rows.shape[1]
        padded = torch.nn.functional.pad(rows, (0, padding)) if padding else rows
        weights = _ones(rows.shape[0], rows.device)
        out = self._compute[layer](padded, weights, slots.view(-1, 1))
        if padding or out.shape[0] > count:
            out = out[:count, : rows.shape[1]]
        return out

    def slot_bytes(self, layer: int, slot: int) -> list[torch.Tensor]:
        return [w[slot] for w in self._filled[layer].get_expert_weights()]

    def weight_bytes(self) -> int:
        return self._weight_bytes


@lru_cache(maxsize=64)
def _ones(count: int, device: torch.device) -> torch.Tensor:
    """[count, 1] float32; decoding repeats few counts, and those of long prompts are large."""
    return torch.ones(count, 1, dtype=torch.float32, device=device)


def _copy_expert(source: RoutedExperts, place: int, target: RoutedExperts, slot: int) -> None:
    for theirs, ours in zip(source.get_expert_weights(), target.get_expert_weights(), strict=True):
        ours[slot].copy_(theirs[place])


def _ask_for_amx() -> None:
    """Linux ends a process that uses AMX's tiles and has not asked for them.

    vLLM's kernel for experts uses them and does not ask: in vLLM itself oneDNN has, for the
    attention's products, which a shard has none of. Raises ShardError if Linux refuses.
    """
    if torch.cpu._is_amx_tile_supported() and not torch.cpu._init_amx():
        raise ShardError(
            "this CPU has AMX (flag amx_tile) and Linux does not let this process use it "
            "(arch_prctl ARCH_REQ_XCOMP_PERM). Use Linux 5.16 or newer, or model.dtype=float32."
        )


def _init_single_process(vllm_config: VllmConfig) -> None:
    """vLLM's layers ask for process groups; this process is a group of one.

    The module of vLLM's worker also prepares its process: on a CPU it stands in for what some
    models (DeepSeek-V4) take of CUDA when they are built.
    """
    resolve_obj_by_qualname(vllm_config.parallel_config.worker_cls)
    if torch.distributed.is_initialized():
        return
    with tempfile.NamedTemporaryFile(prefix="expertmesh-group-", delete=False) as file:
        address = f"file://{file.name}"
    with set_current_vllm_config(vllm_config):
        init_distributed_environment(1, 0, address, 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
    Path(file.name).unlink(missing_ok=True)
