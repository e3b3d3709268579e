"""What an operator reads when a configuration cannot be used: file, key, value, what to write.

Knows YAML and pydantic's error list, and nothing of what the fields mean; those are in `config`.
"""

import copy
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from router.errors import ConfigError

# vLLM's engine arguments that follow from another field, or that the split fixes.
MANAGED_ENGINE_ARGS = {
    "model": "set model.path",
    "served_model_name": "set model.name",
    "dtype": "set model.dtype",
    "max_model_len": "set model.max_model_len",
    "trust_remote_code": "set model.trust_remote_code",
    "max_num_seqs": "set attention.max_num_seqs",
    "max_num_batched_tokens": "set attention.max_num_batched_tokens",
    "load_format": "the platform's loader leaves the experts' weights on disk; remove it",
    "additional_config": "it carries the platform's own settings; remove it",
    "worker_cls": "the platform's own tells an engine's steps apart; remove it",
    "otlp_traces_endpoint": "set tracing.endpoint",
    "distributed_executor_backend": "an attention replica is one engine; remove it",
    "enable_expert_parallel": "the pool spreads the experts; set pool.shards and remove it",
    "enable_eplb": "the controller places replicas; set pool.redundancy and remove it",
}
PARALLEL_SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


def refuse_engine_args(engine_args: Mapping[str, Any]) -> None:
    """Raise ValueError for a vLLM argument that the platform manages or cannot honour."""
    for key, value in engine_args.items():
        if key in MANAGED_ENGINE_ARGS:
            raise ValueError(f"{key} is managed by the platform: {MANAGED_ENGINE_ARGS[key]}")
        if key in PARALLEL_SIZES and value != 1:
            raise ValueError(
                f"{key} is {value!r}, the limit is 1: an attention replica is one process; to use "
                "more machines set attention.replicas and pool.shards"
            )
        if key == "enforce_eager" and value is not True:
            raise ValueError(
                f"enforce_eager is {value!r}, but must be true: the layer that sends rows to the "
                "expert shards is not compiled, so neither is the model around it; remove it"
            )


def suggestion(word: str, known: Iterable[str]) -> str:
    """`did you mean "x"?` for the nearest known word, else the list of known words."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else f"known are: {', '.join(names)}."


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file that holds a mapping. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"configuration file {path} does not exist. Give --config the path of a YAML file; "
            "deploy/configs/ has examples."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"configuration file {path} cannot be read: {error}. Give --config a YAML file in "
            "UTF-8 that this user may read."
        ) from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {where}. Correct that line.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} holds a {type(values).__name__}, not a mapping of sections. Write it like "
            "the files in deploy/configs/."
        )
    return values


def with_overrides(
    values: Mapping[str, Any], overrides: Mapping[str, Any], path: Path | None
) -> dict[str, Any]:
    """A copy of `values` in which each dotted key of `overrides` has its value."""
    merged = copy.deepcopy(dict(values))
    for dotted, value in overrides.items():
        *sections, last = dotted.split(".")
        inner = merged
        for depth, section in enumerate(sections):
            if inner.get(section) is None:
                inner[section] = {}
            inner = inner[section]
            if not isinstance(inner, dict):
                raise ConfigError(
                    f"{dotted} cannot be set: {'.'.join(sections[: depth + 1])} is {inner!r} in "
                    f"{path or 'the overrides'}, not a section. Write it as a mapping of keys."
                )
        inner[last] = value
    return merged


def explain(
    error: ValidationError, model: type[BaseModel], path: Path | None, overrides: Mapping[str, Any]
) -> ConfigError:
    """One ConfigError for all that is wrong, one line each."""
    lines = []
    for item in error.errors(include_url=False):
        dotted = ".".join(str(part) for part in item["loc"])
        is_override = any(key == dotted or key.startswith(f"{dotted}.") for key in overrides)
        source = "command line" if is_override or path is None else str(path)
        lines.append(f"{source}: {_line(item, dotted, model)}")
    return ConfigError("\n".join(dict.fromkeys(lines)))


def _line(item: ErrorDetails, dotted: str, model: type[BaseModel]) -> str:
    value, text = item["input"], item["msg"]
    if item["type"] == "extra_forbidden":
        known = section_of(model, item["loc"][:-1]).model_fields
        return f"unknown key {dotted}: {value!r}; {suggestion(str(item['loc'][-1]), known)}"
    if item["type"] == "value_error":
        return f"{dotted}: {text.removeprefix('Value error, ')}."
    if item["type"] in ("model_type", "model_attributes_type"):
        keys = ", ".join(section_of(model, item["loc"]).model_fields)
        return f"{dotted} is {value!r}, but it is a section. Write a mapping with keys of: {keys}."
    advice = re.sub("^(Input|String) should", "it should", text)
    if item["type"] == "literal_error" and isinstance(value, str):
        choices = re.findall("'([^']+)'", item["ctx"]["expected"])
        if near := difflib.get_close_matches(value, choices, n=1):
            return f'{dotted} is {value!r}; {advice}; did you mean "{near[0]}"?'
    return f"{dotted} is {value!r}; {advice}."


def section_of(model: type[BaseModel], location: Iterable[int | str]) -> type[BaseModel]:
    """The section's class at `location` below `model`."""
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        kinds = (annotation, *get_args(annotation))  # a section that may be null is a union
        model = next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    return model
