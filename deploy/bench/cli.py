"""The words of `python -m deploy bench ...`, and what is run for them."""

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from deploy.bench import dispatch_words, faults_words, overload_words, scale_words
from deploy.bench.report import circumstances, prepare_json, write_json
from deploy.bench.sides import deployment_name
from deploy.bench.throughput_report import text_of
from deploy.bench.throughput_words import RESULTS, add_options, throughput_options
from deploy.processes import adopt_orphans
from deploy.progress import Progress
from deploy.records import run_folder
from deploy.signals import raise_on_stop_signals, stop_signals_ignored
from deploy.start import end_descendants
from router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

NO_SEED = 0

DESCRIPTION = """Serve the same model with unmodified vLLM and with ExpertMesh, in turn, and
compare speed, memory and processor time."""

EXAMPLES = """examples:
  python -m deploy bench throughput --json throughput.json
  python -m deploy bench throughput --models PATH --clients 1,64 --set pool.redundancy=2

A full run takes about twenty minutes on two cores. It wants the machine for itself."""


def add_parser(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `bench` to the command line."""
    bench = commands.add_parser("bench", help="measure", allow_abbrev=False)
    kinds = bench.add_subparsers(dest="benchmark", required=True, metavar="KIND")
    router = kinds.add_parser(
        "router",
        help="what choosing replicas and placing experts cost, with no process but this one",
        allow_abbrev=False,
    )
    router.add_argument("--seed", metavar="N", type=int, default=0, help="of the loads")
    router.add_argument(
        "--shards",
        metavar="LIST",
        default="32,128",
        help="pools to place on (default: %(default)s)",
    )
    router.add_argument(
        "--experts",
        metavar="LIST",
        default="384",
        help="of a layer, that are placed (default: %(default)s)",
    )
    router.add_argument(
        "--json",
        metavar="FILE",
        type=Path,
        default=RESULTS / "router.json",
        help="where results are written (default: %(default)s)",
    )
    dispatch_words.add_options(
        kinds.add_parser(
            "dispatch",
            help="where a layer's time goes between attention and pool",
            allow_abbrev=False,
        )
    )
    plot = kinds.add_parser(
        "plot", help="draw what bench dispatch and bench router have written", allow_abbrev=False
    )
    for option, text in (("dispatch", "of bench dispatch"), ("router", "of bench router")):
        plot.add_argument(
            f"--{option}",
            metavar="FILE",
            type=Path,
            default=RESULTS / f"{option}.json",
            help=f"results {text} (default: %(default)s)",
        )
    plot.add_argument("--png", metavar="FILE", type=Path, default=RESULTS / "cost.png")
    scrape = kinds.add_parser(
        "scrape", help="size and time of /metrics for 61 x 384 experts", allow_abbrev=False
    )
    scrape.add_argument("--seed", metavar="N", type=int, default=0, help="of the loads")
    scrape.add_argument("--json", metavar="FILE", type=Path, default=RESULTS / "scrape.json")
    faults_words.add_options(
        kinds.add_parser(
            "faults",
            help="kill and stop parts of a running application, and shift its load",
            description=faults_words.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    overload_words.add_options(
        kinds.add_parser(
            "overload",
            help="ask a running application for more than it can carry",
            description=overload_words.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    scale_words.add_options(
        kinds.add_parser(
            "scale",
            help="let the load of a running application grow eightfold and fall back",
            description=scale_words.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    add_options(
        kinds.add_parser(
            "throughput",
            help="compare with unmodified vLLM's server",
            description=DESCRIPTION,
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Run one benchmark and return its exit code. Raises PlatformError, and Stopped by a signal."""
    raise_on_stop_signals()
    adopt_orphans()
    try:
        return BENCHMARKS[arguments.benchmark](arguments, out)
    finally:
        with stop_signals_ignored():
            end_descendants()


def _run_throughput(arguments: argparse.Namespace, out: TextIO) -> int:
    from deploy.bench.throughput import ThroughputRun

    progress = Progress(out)
    prepare_json(arguments.json)
    options = throughput_options(arguments, progress)
    around = circumstances(arguments.seed, sys.argv[1:])
    try:
        report = ThroughputRun(options, around, progress).run()
    finally:
        shutil.rmtree(run_folder(deployment_name()), ignore_errors=True)
    progress.plain(f"\n{text_of(report)}\nwritten to {arguments.json}")
    return 0


def _run_faults(arguments: argparse.Namespace, out: TextIO) -> int:
    from deploy.bench.application import find_application
    from deploy.bench.faults import FaultRun
    from deploy.bench.faults_report import text_of as text_of_faults

    progress = Progress(out)
    prepare_json(arguments.json)
    options = faults_words.fault_options(arguments)
    around = circumstances(NO_SEED, sys.argv[1:])  # nothing is drawn by chance
    report = FaultRun(find_application(arguments.name), options, around, progress).run()
    progress.plain(f"\n{text_of_faults(report)}\nwritten to {arguments.json}")
    return int(any(result.failed for result in report.results))


def _run_scale(arguments: argparse.Namespace, out: TextIO) -> int:
    from deploy.bench.application import find_application
    from deploy.bench.scale import measure_scale
    from deploy.bench.scale_report import plot
    from deploy.bench.scale_report import text_of as text_of_scale

    progress = Progress(out)
    for file in (arguments.json, arguments.png):
        prepare_json(file)
    options = scale_words.scale_options(arguments)
    around = circumstances(NO_SEED, sys.argv[1:])
    report = measure_scale(find_application(arguments.name), options, around, progress)
    plot(report, options.png_file)
    progress.plain(
        f"\n{text_of_scale(report)}\nwritten to {options.json_file} and {options.png_file}"
    )
    return int(report.failed > 0)


def _run_overload(arguments: argparse.Namespace, out: TextIO) -> int:
    from deploy.bench.application import find_application, find_owner
    from deploy.bench.overload import measure_overload, plot
    from deploy.bench.overload import text_of as text_of_overload

    progress = Progress(out)
    for file in (arguments.json, arguments.png):
        prepare_json(file)
    options = overload_words.overload_options(arguments)
    around = circumstances(NO_SEED, sys.argv[1:])
    app, owner = find_application(arguments.name), find_owner(arguments.name)
    report = measure_overload(app, owner, options, around, progress)
    plot(report, options.png_file)
    progress.plain(
        f"\n{text_of_overload(report)}\nwritten to {options.json_file} and {options.png_file}"
    )
    return int(any(step.failed for step in report.steps))


def _run_dispatch(arguments: argparse.Namespace, out: TextIO) -> int:
    from deploy.bench.dispatch import measure_dispatch
    from deploy.bench.dispatch import text_of as text_of_dispatch

    progress = Progress(out)
    prepare_json(arguments.json)
    options = dispatch_words.dispatch_options(arguments, progress)
    around = circumstances(arguments.seed, sys.argv[1:])
    report = measure_dispatch(options, around, progress)
    write_json(arguments.json, report)
    progress.plain(f"\n{text_of_dispatch(report)}\nwritten to {arguments.json}")
    return 0


def _run_router(arguments: argparse.Namespace, out: TextIO) -> int:
    from deploy.bench.router import measure_router, text_of

    progress = Progress(out)
    prepare_json(arguments.json)
    shards, experts = (
        _sizes(option, getattr(arguments, option)) for option in ("shards", "experts")
    )
    around = circumstances(arguments.seed, sys.argv[1:])
    report = measure_router(around, shards, experts, progress)
    write_json(arguments.json, report)
    progress.plain(f"\n{text_of(report)}\nwritten to {arguments.json}")
    return 0


def _run_scrape(arguments: argparse.Namespace, out: TextIO) -> int:
    from deploy.bench.scrape import measure_scrape, text_of

    prepare_json(arguments.json)
    report = measure_scrape(circumstances(arguments.seed, sys.argv[1:]))
    write_json(arguments.json, report)
    print(f"{text_of(report)}\nwritten to {arguments.json}", file=out, flush=True)
    return 0


def _sizes(option: str, text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.strip().isdigit() and int(word) >= 2 for word in words):
        raise ConfigError(f"--{option} {text} is no list of numbers from 2; write 32,128.")
    return tuple(int(word) for word in words)


def _run_plot(arguments: argparse.Namespace, out: TextIO) -> int:
    from deploy.bench.plot import plot_costs

    plot_costs(arguments.dispatch, arguments.router, arguments.png)
    print(f"written to {arguments.png}", file=out, flush=True)
    return 0


BENCHMARKS: dict[str, Callable[[argparse.Namespace, TextIO], int]] = {
    "throughput": _run_throughput,
    "faults": _run_faults,
    "overload": _run_overload,
    "scale": _run_scale,
    "dispatch": _run_dispatch,
    "plot": _run_plot,
    "router": _run_router,
    "scrape": _run_scrape,
}
