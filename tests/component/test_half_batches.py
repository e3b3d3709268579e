"""Which steps are cut in two halves, and what is said when vLLM's forward pass is another one.

That halves give the right text is `test_families`' matter.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from router.errors import EngineError
from services import vllm_forward
from services.attention.half_batches import HalfBatches
from services.attention.turns import Turns
from services.vllm_hooks import VLLM_VERSION

HIDDEN = 4


class Forward:
    """A step's tokens doubled, wherever they are computed."""

    def __init__(self, starts: list[int] | None, reads_ahead: bool) -> None:
        self._starts = starts
        self._reads_ahead = reads_ahead
        self.seen: list[tuple[int, int]] = []  # tokens from, to

    def starts(self, arguments: Any) -> list[int] | None:
        return self._starts

    def reads_ahead(self, starts: list[int], cut: int) -> bool:
        return self._reads_ahead

    def contexts(self, parts: list[Any]) -> list[Any]:
        return parts

    def whole(self, **arguments: Any) -> torch.Tensor:
        self.seen.append((0, arguments["input_ids"].shape[0]))
        return self._output(arguments["input_ids"])

    def within(self, context: Any, part: Any, arguments: Any) -> torch.Tensor:
        assert context is part
        self.seen.append((part.token_slice.start, part.token_slice.stop))
        return self._output(arguments["input_ids"][part.token_slice])

    def _output(self, tokens: torch.Tensor) -> torch.Tensor:
        return (2 * tokens)[:, None].expand(-1, HIDDEN)


@pytest.mark.parametrize(
    ("starts", "least_tokens", "reads_ahead", "expected"),
    [
        ([0, 3, 8], 8, False, [(0, 3), (3, 8)]),
        ([0, 3, 8], 9, False, [(0, 8)]),
        ([0, 3, 8], 8, True, [(0, 8)]),
        ([0, 8], 8, False, [(0, 8)]),
        (None, 8, False, [(0, 8)]),
    ],
    ids=["halves", "few tokens", "reads ahead", "one request", "not of text alone"],
)
def test_a_step_is_cut_or_whole(
    starts: list[int] | None, least_tokens: int, reads_ahead: bool, expected: list[tuple[int, int]]
) -> None:
    forward, tokens = Forward(starts, reads_ahead), torch.arange(8)
    halves = HalfBatches(forward, Turns(), least_tokens=least_tokens)  # type: ignore[arg-type]
    out = halves(input_ids=tokens, positions=tokens)
    assert forward.seen == expected
    assert halves.steps == len(expected) - 1
    assert torch.equal(out, (2 * tokens)[:, None].expand(-1, HIDDEN))


def runner(**changes: Any) -> Any:
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            enforce_eager=True,
            is_encoder_decoder=False,
            is_hybrid=False,
        ),
        aux_output_config=SimpleNamespace(enabled=False),
        parallel_config=SimpleNamespace(world_size=1),
        lora_config=None,
        speculative_config=None,
        kv_transfer_config=None,
    )
    for name, value in changes.items():
        setattr(config, name, value)
    return SimpleNamespace(vllm_config=config, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ([[1, 2, 0], [3, 0, 0], [4, 5, 0]], False),
        ([[1, 5, 0], [3, 0, 0], [4, 5, 0]], True),  # the first reads what the last one writes
        ([[1, 2, 5], [3, 0, 0], [4, 5, 0]], False),  # no block of its eight tokens any more
        ([[1, 2, 0], [3, 0, 0], [1, 5, 0]], False),  # the other way round is in order
    ],
)
def test_a_step_is_whole_if_a_prefix_would_be_read_before_it_is_written(
    monkeypatch: pytest.MonkeyPatch, tables: list[list[int]], expected: bool
) -> None:
    monkeypatch.setattr(vllm_forward, "check_forward", lambda: None)
    blocks = torch.tensor(tables, dtype=torch.int32)
    table = SimpleNamespace(block_size=4, get_device_tensor=lambda count: blocks[:count])
    slots = torch.tensor([7, 8, 9, 12, 20, 21])  # block * 4 + place, of the six new tokens
    engine = SimpleNamespace(
        _model_forward=None,
        _build_attention_metadata=lambda **arguments: None,
        seq_lens=torch.tensor([8, 1, 6]),
        input_batch=SimpleNamespace(block_table={0: table}),
    )
    forward = vllm_forward.StepForward(engine)
    engine._build_attention_metadata(slot_mappings={0: slots})
    assert forward.reads_ahead([0, 3, 4, 6], cut=2) == expected


def test_an_engine_is_cut_unless_something_ties_its_requests_together() -> None:
    assert vllm_forward.can_be_cut(runner())
    for name in ("lora_config", "speculative_config", "kv_transfer_config"):
        assert not vllm_forward.can_be_cut(runner(**{name: object()}))
    assert not vllm_forward.can_be_cut(runner(parallel_config=SimpleNamespace(world_size=2)))


def test_vllms_forward_pass_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm_forward.check_forward()
    monkeypatch.setattr(GPUModelRunner, "_build_attention_metadata", lambda self: None)
    monkeypatch.delattr("vllm.forward_context._forward_context")
    with pytest.raises(EngineError) as raised:
        vllm_forward.check_forward()
    said = str(raised.value)
    assert VLLM_VERSION in said
    assert "GPUModelRunner._build_attention_metadata(num_reqs, num_tokens, slot_mappings" in said
    assert "forward_context._forward_context" in said
    assert "attention.half_batch_tokens to 0" in said
