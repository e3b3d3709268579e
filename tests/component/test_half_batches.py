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

    def __init__(self, starts: list[int] | None) -> None:
        self._starts = starts
        self.seen: list[tuple[int, int]] = []  # tokens from, to

    def starts(self, arguments: Any) -> list[int] | None:
        return self._starts

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
    ("starts", "least_tokens", "room", "expected"),
    [
        ([0, 3, 8], 8, True, [(0, 3), (3, 8)]),
        ([0, 3, 8], 9, True, [(0, 8)]),
        ([0, 3, 8], 8, False, [(0, 8)]),
        ([0, 8], 8, True, [(0, 8)]),
        (None, 8, True, [(0, 8)]),
    ],
    ids=["halves", "few tokens", "no room", "one request", "not of text alone"],
)
def test_a_step_is_cut_or_whole(
    starts: list[int] | None, least_tokens: int, room: bool, expected: list[tuple[int, int]]
) -> None:
    forward, tokens = Forward(starts), torch.arange(8)
    halves = HalfBatches(
        forward,  # type: ignore[arg-type]
        Turns(),
        least_tokens=least_tokens,
        has_room=lambda: room,
    )
    out = halves(input_ids=tokens, positions=tokens)
    assert forward.seen == expected
    assert halves.steps == len(expected) - 1
    assert torch.equal(out, (2 * tokens)[:, None].expand(-1, HIDDEN))


def runner(**changes: Any) -> Any:
    config = SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=True, is_encoder_decoder=False, is_hybrid=False),
        parallel_config=SimpleNamespace(world_size=1),
        lora_config=None,
        speculative_config=None,
        kv_transfer_config=None,
    )
    for name, value in changes.items():
        setattr(config, name, value)
    return SimpleNamespace(vllm_config=config, device=torch.device("cpu"))


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
