"""What this machine can do, and the dtype and threads that follow from it.

Pure functions of text and numbers, with one reader, `this_machine`, that looks.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

# CPU flags that let a matrix product run on bfloat16 as it is; elsewhere float32 is faster.
BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})
AMX_FLAG = "amx_tile"


@dataclass(frozen=True, slots=True)
class Machine:
    """One host, as the choices below need it."""

    flags: frozenset[str]  # of the CPU
    cores: int  # that this process may run on
    available_bytes: int  # of memory, at the time of looking
    gpus: int


def this_machine() -> Machine:
    """Look at the host that this process runs on."""
    return Machine(
        flags=frozenset(cpu_flags(_text(Path("/proc/cpuinfo")))),
        cores=len(os.sched_getaffinity(0)),
        available_bytes=available_bytes(
            _text(Path("/proc/meminfo")),
            _text(Path("/sys/fs/cgroup/memory.max")),
            _text(Path("/sys/fs/cgroup/memory.current")),
        ),
        gpus=sum(1 for _ in Path("/dev").glob("nvidia[0-9]*")),
    )


def cpu_flags(cpuinfo: str) -> set[str]:
    """The flags of the first CPU in the text of /proc/cpuinfo (x86 `flags`, Arm `Features`)."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return set(found.group(1).split()) if found else set()


def available_bytes(meminfo: str, cgroup_limit: str, cgroup_used: str) -> int:
    """Memory to be had: the machine's, or what is left of a container's limit if that is less.

    The texts of /proc/meminfo and of a control group's memory.max and memory.current.
    """
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", meminfo, re.MULTILINE)
    free_bytes = int(found.group(1)) * 1024 if found else 0
    limit, used = cgroup_limit.strip(), cgroup_used.strip()
    if not (limit.isdigit() and used.isdigit()):  # no container, or the limit "max"
        return free_bytes
    return min(free_bytes, max(0, int(limit) - int(used)))


def choose_dtype(flags: set[str] | frozenset[str], has_gpu: bool, requested: str) -> str:
    """`requested`, or for "auto" the fastest type: bfloat16 where it is native, else float32.

    Source: measured, FACTS "Speed seen": without these flags bfloat16 takes 2-8 times as long.
    """
    if requested != "auto":
        return requested
    return "bfloat16" if has_gpu or flags & BFLOAT16_FLAGS else "float32"


def choose_threads(
    cores: int, attention_replicas: int, shards: int, *, most_replicas: int
) -> tuple[int, int, int]:
    """Threads of one attention replica, the same for prompts, and of one shard.

    most_replicas: of attention, that there may ever be.

    Attention and the shards take turns, layer by layer, so the shards get all cores; a batch uses
    one or all of them, by what the shard has measured (`services.experts.threads`). That holds with
    several replicas too (two, on two cores: DECISIONS.md).
    The attention side gets half: its threads must sleep while rows are away, and waking them for
    each of its many small operations takes longer than they save (measured on two cores, 107M
    model of DeepSeek-V3's shape, 1/8/32 sequences: 27/40/63 ms a step with one thread, 43/57/94
    with two). Operations on a prompt are large enough: replicas have all cores for them
    (`services.attention.threads`).
    """
    for_attention = max(1, cores // 2 // attention_replicas)
    return for_attention, max(for_attention, cores // most_replicas), max(1, cores // shards)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
