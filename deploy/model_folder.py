"""Writes a checkpoint's folder so that it is there in full or not at all, and is made only once.

What is in it is for `demo_model` and `random_model` to say. A recipe, kept in the folder, tells
one build from another.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from router.errors import ConfigError

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def build_once(
    out: Path, marker: str, recipe: Mapping[str, Any], write: Callable[[Path], None]
) -> bool:
    """Have `write` fill a new folder, and call it `out`; False if that was done before.

    marker: file that holds the recipe; its stem names the kind of model.
    Raises ConfigError when `out` holds something else.
    """
    if (out / marker).is_file() and json.loads((out / marker).read_text()) == recipe:
        return False
    _refuse_foreign_folder(out, marker)
    unfinished = out.with_name(out.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write(unfinished)
    write_json(unfinished / marker, recipe)
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)
    return True


def save_weights(folder: Path, file: str, tensors: Mapping[str, Tensor], dtype: str) -> list[str]:
    """Write one weights file; returns its tensors' names. Shared tensors are stored apart."""
    from safetensors.torch import save_file

    stored = {name: t.to(DTYPES[dtype], copy=True).contiguous() for name, t in tensors.items()}
    save_file(stored, folder / file, metadata={"format": "pt"})
    return list(stored)


def write_index(folder: Path, files: Mapping[str, list[str]]) -> None:
    """Write which tensor is in which file. files: file's name → names of its tensors."""
    size = sum((folder / file).stat().st_size for file in files)
    index = {name: file for file, names in files.items() for name in names}
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": size}, "weight_map": index},
    )


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write it for people to read, too."""
    file.write_text(json.dumps(content, indent=1) + "\n")


def _refuse_foreign_folder(out: Path, marker: str) -> None:
    """Raise ConfigError unless `out` is free, or an older build of ours that may be replaced."""
    is_empty = out.is_dir() and not any(out.iterdir())
    if out.exists() and not (out / marker).is_file() and not is_empty:
        kind = marker.partition(".")[0].replace("_", " ")
        raise ConfigError(f"{out} holds something else than a {kind}; choose another folder")
