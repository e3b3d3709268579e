"""What only vLLM can answer: is the architecture known, are the engine arguments its own.

vLLM is imported in `ask_vllm`, in a process of its own, because that takes 5 to 10 seconds and
hundreds of MB which the command line's process would keep while it serves.
"""

import json
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from router.errors import CheckpointError, ConfigError, EngineError
from services.config_errors import suggestion

_QUESTION = """
import dataclasses, json
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.model_executor.models.registry import ModelRegistry
names = [field.name for field in dataclasses.fields(AsyncEngineArgs)]
print("\\n" + json.dumps([sorted(ModelRegistry.get_supported_archs()), names]))
"""


@dataclass(frozen=True, slots=True)
class VllmFacts:
    """What the installed vLLM can take."""

    architectures: frozenset[str]
    engine_args: frozenset[str]


def ask_vllm(timeout_s: float = 120.0) -> VllmFacts:
    """Ask the installed vLLM. Raises EngineError if it cannot be imported."""
    advice = "Install the pinned packages again (make setup)."
    try:
        done = subprocess.run(
            [sys.executable, "-c", _QUESTION],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"vLLM did not import within {timeout_s:g} s. {advice}") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(f"vLLM cannot be imported: {last}. {advice}")
    architectures, names = json.loads(done.stdout.strip().splitlines()[-1])
    return VllmFacts(frozenset(architectures), frozenset(names))


def check_architecture(config: Mapping[str, Any], facts: VllmFacts) -> None:
    """Raise CheckpointError if vLLM has no model class for any architecture of config.json."""
    named = config.get("architectures")
    if not isinstance(named, list) or not named:
        raise CheckpointError(
            'config.json has no "architectures": vLLM cannot tell which model it is. Add it, for '
            'example "architectures": ["MixtralForCausalLM"].'
        )
    if not facts.architectures.intersection(named):
        word = str(named[0])
        raise CheckpointError(
            f"architecture {word} is unknown to the installed vLLM, which has "
            f"{len(facts.architectures)}; {_nearest(word, facts.architectures)}"
            "Use a checkpoint of one of them, or a newer vLLM."
        )


def check_engine_args(engine_args: Mapping[str, Any], facts: VllmFacts) -> None:
    """Raise ConfigError for an argument that vLLM's AsyncEngineArgs does not have."""
    for key in engine_args:
        if key not in facts.engine_args:
            raise ConfigError(
                f"attention.engine_args.{key} is not an argument of vLLM's AsyncEngineArgs; "
                f"{_nearest(key, facts.engine_args)}Correct or remove it."
            )


def _nearest(word: str, known: Collection[str]) -> str:
    """The nearest known word, if one is near: hundreds are known, too many to list."""
    hint = suggestion(word, known)
    return f"{hint} " if hint.startswith("did you") else ""
