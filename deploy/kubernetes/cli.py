"""The words of `python -m deploy render`."""

import argparse
from pathlib import Path
from typing import TextIO

from deploy.kubernetes.render import RenderOptions, overlays, render
from deploy.settings import parse_setting


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "render",
        help="write Kubernetes manifests for a model",
        description="Write a Kustomize folder for one model: an overlay of k8s/ with replicas, "
        "slots and memory worked out from the checkpoint. Create it with kubectl apply -k.",
        allow_abbrev=False,
    )
    parser.add_argument("--overlay", required=True, choices=overlays(), help="of k8s/overlays")
    parser.add_argument("--config", metavar="FILE", type=Path, help="deployment as a YAML file")
    parser.add_argument(
        "--model", metavar="PATH", help="folder of the checkpoint, as it is here (model.path)"
    )
    parser.add_argument(
        "--machines", metavar="FILE", type=Path, help="what the pods run on (the overlay's)"
    )
    for word, what in (
        ("--set", "setting of the configuration, such as pool.redundancy=2"),
        ("--machine", "setting of the machines, such as experts.memory_gib=512"),
    ):
        parser.add_argument(
            word, metavar="KEY=VALUE", action="append", default=[], help=f"{what}; may be repeated"
        )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder to write (expertmesh-OVERLAY)"
    )


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Render, and say what was worked out. Raises PlatformError."""
    overrides = dict(parse_setting(text) for text in arguments.set)
    if arguments.model is not None:
        overrides["model.path"] = arguments.model
    options = RenderOptions(
        overlay=arguments.overlay,
        config_file=arguments.config,
        overrides=overrides,
        machines_file=arguments.machines,
        machine_overrides=dict(parse_setting(text, "--machine") for text in arguments.machine),
        out=arguments.out or Path(f"expertmesh-{arguments.overlay}"),
    )
    sizes = render(options)
    for note in sizes.notes:
        print(note, file=out)
    print(f"written; create it with: kubectl apply -k {options.out}", file=out, flush=True)
    return 0
