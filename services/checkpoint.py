"""What is in a checkpoint's folder: config.json and the headers of its safetensors files.

Reads no weight and needs no torch, so that the operator's tools answer at once. Which tensors are
routed experts is told in `checkpoint_names`, how many there are in `checkpoint_config`; loading
them is vLLM's, through `services.experts`.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from router.errors import CheckpointError
from services.checkpoint_config import n_experts, n_experts_per_token
from services.checkpoint_names import expert_id, is_routed_expert, layer_of

__all__ = [
    "Checkpoint",
    "TensorInfo",
    "expert_id",
    "is_routed_expert",
    "layer_of",
    "n_experts",
    "n_experts_per_token",
    "read_checkpoint",
]

INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One stored tensor."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors writes it: F32, BF16, F8_E4M3, U8 ...
    n_bytes: int

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder that can be read: every tensor that its index names is there in full."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.n_bytes for tensor in self.tensors.values())

    @property
    def routed(self) -> Iterator[TensorInfo]:
        """The routed experts' tensors: what the pool holds and the attention part does not."""
        return (t for t in self.tensors.values() if is_routed_expert(t.name))

    @property
    def routed_bytes(self) -> int:
        """Bytes of the routed experts' tensors as stored."""
        return sum(tensor.n_bytes for tensor in self.routed)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a Hugging Face folder's config.json and tensor headers.

    Raises CheckpointError: no such folder, no or damaged config.json, no safetensors, a file that
    the index names is missing, a truncated file, a tensor of the index that no file holds.
    """
    if not path.exists():
        raise CheckpointError(
            f"model folder {path} does not exist. Give --model (or model.path) the folder of a "
            "downloaded checkpoint: config.json and *.safetensors files."
        )
    if not path.is_dir():
        raise CheckpointError(
            f"model path {path} is a file, not a folder. Give the folder that holds config.json."
        )
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"model folder {path} has no config.json; it holds {_listing(path)}. Give the folder "
            "of a Hugging Face checkpoint, not the one above it."
        )
    config = _read_json(path / "config.json")
    index_path = path / INDEX
    weight_map = _weight_map(index_path) if index_path.is_file() else None
    files = _safetensors_files(path, weight_map)
    tensors = {tensor.name: tensor for file in files for tensor in read_header(file)}
    if weight_map is not None:
        _check_index(index_path, weight_map, tensors)
    return Checkpoint(path, config, tensors)


def read_header(file: Path) -> list[TensorInfo]:
    """The tensors that a safetensors file says it holds; checks that the file is long enough."""
    there = file.stat().st_size
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if there < 8 or 8 + header_bytes > there or header_bytes > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{file} is truncated or not a safetensors file: it has {there} bytes, its header "
                f"alone would need {8 + header_bytes}. Download it again."
            )
        text = stream.read(header_bytes)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        tensors = [_tensor(name, file, entry) for name, entry in entries.items()]
        data_bytes = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} has a damaged safetensors header ({error}). Download it again."
        ) from error
    if there < (needed := 8 + header_bytes + data_bytes):
        raise CheckpointError(
            f"{file} is truncated: it has {there} bytes, its tensors need {needed}. "
            "Download it again."
        )
    return tensors


def _tensor(name: str, file: Path, entry: Mapping[str, Any]) -> TensorInfo:
    begin, end = entry["data_offsets"]
    return TensorInfo(name, file, tuple(entry["shape"]), str(entry["dtype"]), int(end) - int(begin))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}. Download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file} holds a {type(content).__name__}, not an object. Download it again."
        )
    return content


def _weight_map(index_path: Path) -> dict[str, str]:
    weight_map = _read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f'{index_path} has no "weight_map". Download it again.')
    return cast(dict[str, str], weight_map)


def _safetensors_files(path: Path, weight_map: Mapping[str, str] | None) -> list[Path]:
    """The files to read: those of the index if there is one, else all of the folder."""
    if weight_map is None:
        files = sorted(path.glob("*.safetensors"))
        # Mistral's folders hold the same weights twice, under Hugging Face's names and its own.
        own = [file for file in files if not file.name.startswith("consolidated")]
        if files:
            return own or files
        raise CheckpointError(
            f"model folder {path} has no *.safetensors file; it holds {_listing(path)}. Only "
            "safetensors weights are accepted: convert .bin, .pt or .gguf files first."
        )
    names = sorted(set(weight_map.values()))
    if missing := [name for name in names if not (path / name).is_file()]:
        shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise CheckpointError(
            f"model folder {path} lacks {len(missing)} of the {len(names)} files that {INDEX} "
            f"names: {shown}. Download the missing files."
        )
    return [path / name for name in names]


def _check_index(
    index_path: Path, weight_map: Mapping[str, str], tensors: Mapping[str, TensorInfo]
) -> None:
    lost = [
        (name, file)
        for name, file in weight_map.items()
        if name not in tensors or tensors[name].file.name != Path(file).name
    ]
    if lost:
        name, file = lost[0]
        raise CheckpointError(
            f"{index_path} names {len(lost)} of {len(weight_map)} tensors that their file does "
            f"not hold, first {name} in {file}. Index and files are of different downloads: "
            "download all of them again."
        )


def _listing(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    return (", ".join(names[:8]) + (" ..." if len(names) > 8 else "")) or "nothing"
