"""The machines that a deployment is to run on, as an operator describes them in a small YAML file.

What fits on them is `sizes`' to say.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from deploy.memory import GIB
from services.config_base import AtLeastOne, Positive, Section, Share
from services.config_errors import explain, read_yaml, with_overrides

USABLE = 0.9  # of a machine's memory: the rest is Kubernetes' own, and the system's


class Machine(Section):
    # Memory of one machine, GiB, > 0.
    memory_gib: Positive
    # CPUs of one machine, >= 1.
    cpus: AtLeastOne
    # GPUs of one machine, >= 0, and the memory of each, GiB.
    gpus: Annotated[int, Field(ge=0)] = 0
    gpu_memory_gib: Share = 0.0
    # How many there are, >= 1. None: as many as are needed (they are told).
    count: AtLeastOne | None = None

    @property
    def usable_bytes(self) -> int:
        """Memory of one machine for pods."""
        return int(self.memory_gib * USABLE * GIB)


class Machines(Section):
    # Those that carry attention replicas, and the head's and the gateway's pods.
    attention: Machine
    # Those that carry shards. None: they share the machines above.
    experts: Machine | None = None


def load_machines(path: Path, overrides: Mapping[str, Any]) -> Machines:
    """Read the description; `overrides` as in `load_config`. Raises ConfigError."""
    values = with_overrides(read_yaml(path), overrides, path)
    try:
        return Machines.model_validate(values)
    except ValidationError as error:
        raise explain(error, Machines, path, overrides) from error
