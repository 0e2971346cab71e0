"""`lfmri bench`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lfmri.extras import require
from lfmri.options import BACKENDS, PRECISIONS, backend_options, bundle_option
from lfmri_runtime.errors import BackendMissing, UsageError

if TYPE_CHECKING:
    from lfmri_runtime.bundle import Bundle
    from lfmri_runtime.enhancer import Enhancer

PYTORCH = "pytorch"


@click.command()
@bundle_option
@backend_options
@click.option(
    "--compare",
    nargs=2,
    metavar="A B",
    help=f"Two of auto, {', '.join(BACKENDS)}, {PYTORCH}; NAME:PRECISION names a precision too.",
)
@click.option("--scan", type=click.Path(path_type=Path), help="The scan to enhance.  [default: the sample]")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="Rounds that count.")
@click.option("--steps", default=1, show_default=True, type=click.IntRange(1, 1000), help="Euler steps.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Where to write all figures.")
def bench(
    bundle: Path | None,
    backend: str,
    precision: str | None,
    threads: int,
    compare: tuple[str, str] | None,
    scan: Path | None,
    rounds: int,
    steps: int,
    json_path: Path | None,
) -> None:
    """Measure a back end on this machine, in turn with PyTorch where it is installed, or two with each other.

    A scan is enhanced from file to file; the machine should do nothing else meanwhile.
    """
    from lfmri_runtime.bundle import open_bundle
    from lfmri_runtime.device.bench import bench as measure
    from lfmri_runtime.files import check_writable, write_json
    from lfmri_runtime.sample import LOW_FIELD

    if json_path is not None:
        check_writable(json_path)
    opened = open_bundle(bundle)
    names = compare or (backend if precision is None else f"{backend}:{precision}",)
    openers = dict(_opener(name, opened, threads=threads) for name in names)
    if len(openers) < len(names):
        raise UsageError(f"--compare got {' and '.join(names)}, which are one back end here; expected two")
    if compare is None:
        try:
            openers |= [_opener(PYTORCH, opened, threads=threads)]
        except BackendMissing as error:
            click.echo(f"lfmri: note: without PyTorch: {error}", err=True)
    say: Callable[[str], None] = lambda line: click.echo(f"lfmri: {line}", err=True)  # noqa: E731 - typed
    figures = measure(openers, LOW_FIELD if scan is None else scan, rounds=rounds, steps=steps, say=say)
    _print(figures)
    if json_path is not None:
        write_json(json_path, figures)


def _opener(name: str, bundle: "Bundle", *, threads: int) -> tuple[str, "Callable[[], Enhancer]"]:
    """A contestant's label and what opens it."""
    from lfmri_runtime.choice import choose
    from lfmri_runtime.device.cold import open_enhancer

    backend, _, precision = name.partition(":")
    if backend == PYTORCH and not precision:
        return PYTORCH, partial(
            require("lfmri_export.eager", extra="export").open_enhancer, bundle.path, threads=threads
        )
    if backend not in ("auto", *BACKENDS) or precision not in ("", *PRECISIONS):
        raise UsageError(
            f"{name!r} cannot be measured; expected auto, {', '.join(BACKENDS)} or {PYTORCH}, or NAME:PRECISION "
            f"with one of {', '.join(PRECISIONS)}"
        )
    choice = choose(bundle, backend=backend, precision=precision or None, require=True, threads=threads)
    for note in choice.notes:
        click.echo(f"lfmri: note: {note}", err=True)
    found = (choice.step.name, choice.step.precision)
    choice.step.close()
    return ":".join(found), partial(open_enhancer, bundle.path, *found, threads=threads)


def _print(figures: dict[str, Any]) -> None:
    from lfmri.tables import print_table

    contestants = figures["contestants"]
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("runs on", lambda c: c["backend"]["provider"]),
        (
            "golden check",
            lambda c: f"{'passed' if c['golden']['passed'] else 'FAILED'}, {c['golden']['least_psnr_db']} dB",
        ),
        ("cold start, s", lambda c: f"{c['cold_start_s']:.2f}"),
        ("first scan, one step, s", lambda c: f"{c['first_run_s']:.2f}"),
        ("volume p50 / p95, s", lambda c: f"{c['volume_s']['p50']:.2f} / {c['volume_s']['p95']:.2f}"),
        ("slice p50 / p95, ms", lambda c: f"{c['slice_s']['p50'] * 1e3:.1f} / {c['slice_s']['p95'] * 1e3:.1f}"),
        ("stages, s", lambda c: "\n".join(f"{name} {seconds:.3f}" for name, seconds in c["stages_s"].items())),
        ("our own share p50, %", lambda c: f"{c['own_share']['p50'] * 100:.1f}"),
        ("peak memory, MiB", lambda c: str(c["peak_memory_mib"])),
        ("GPU memory, MiB", lambda c: "not known" if c["gpu_memory_mib"] is None else str(c["gpu_memory_mib"])),
        (
            f"energy a volume, J\n({figures['energy']})",
            lambda c: "not reported" if c["energy_j"] is None else f"{c['energy_j']['p50']:.1f}",
        ),
    ]
    table = [(name, *(cell(c) for c in contestants.values())) for name, cell in rows]
    load = figures["machine"]["load"][0]
    title = f"{figures['steps']} steps, {figures['rounds']} rounds in turn, load {load} at the end"
    print_table(title, ("", *contestants), table)
    first = next(iter(contestants))
    for label, ratio in figures["ratios"].items():
        spread = f"{ratio['least']} to {ratio['most']}"
        click.echo(f"{first} is {ratio['median']} times as fast per volume as {label} (paired rounds: {spread})")
