"""`lfmri enhance`."""

from pathlib import Path

import click

from lfmri.options import backend_options, bundle_option
from lfmri.progress import progress_bar
from lfmri_runtime.errors import UsageError


@click.command()
@click.argument("scans", metavar="SCAN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Enhanced scan; for several scans a folder."
)
@bundle_option
@click.option(
    "--steps",
    type=int,
    help="Euler steps: 1 is nearest to the truth on average, more are sharper.  [default: the bundle's]",
)
@click.option(
    "--samples", default=1, show_default=True, type=int, help="Draws to average; more than one gives an uncertainty."
)
@click.option(
    "--seed", default=0, show_default=True, type=int, help="Seed of the noise; the same seed gives the same bytes."
)
@click.option(
    "--uncertainty", type=click.Path(path_type=Path), help="Where to write the standard deviation over samples."
)
@click.option(
    "--grid",
    default="isotropic",
    show_default=True,
    type=click.Choice(["isotropic", "input"]),
    help="Grid of the output.",
)
@click.option(
    "--thick-axis",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "R", "A", "S", "none"]),
    help="Axis of the thick slices; auto reads the header.",
)
@click.option(
    "--mask", type=click.Path(path_type=Path), help="Brain or head mask on the scan's grid; outside becomes zero."
)
@click.option(
    "--report", "page", type=click.Path(path_type=Path), help="Where to write an HTML page that shows the result."
)
@backend_options
@click.option("--require", is_flag=True, help="Refuse rather than run anything but that --backend and --precision.")
def enhance(
    scans: tuple[Path, ...],
    out: Path,
    bundle: Path | None,
    uncertainty: Path | None,
    mask: Path | None,
    page: Path | None,
    backend: str,
    precision: str | None,
    require: bool,
    threads: int,
    **settings: object,
) -> None:
    """Enhance low-field scans (.nii, .nii.gz, .mgz).

    Beside each output a .json says how it was made. The input is never changed.
    """
    from lfmri_runtime.bundle import open_bundle
    from lfmri_runtime.enhancer import Enhancer
    from lfmri_runtime.job import Outputs, check_outputs, enhance_file

    if len(scans) > 1 and (uncertainty or mask or page):
        raise UsageError("--uncertainty, --mask and --report belong to one scan; expected one SCAN beside them")
    if uncertainty is not None and settings["samples"] == 1:
        raise UsageError("--uncertainty needs several draws; expected --samples of at least 2")
    if require and backend == "auto" and precision is None:
        raise UsageError("--require says that nothing else may run; expected --backend or --precision beside it")
    targets = [out] if len(scans) == 1 else [out / scan.name for scan in scans]
    jobs = [(scan, Outputs(target, uncertainty, page)) for scan, target in zip(scans, targets, strict=True)]
    check_outputs(jobs, kept=[] if mask is None else [mask])
    enhancer = Enhancer(open_bundle(bundle), backend=backend, precision=precision, require=require, threads=threads)
    for scan, outputs in jobs:
        with progress_bar(f"enhancing {scan.name}") as progress:
            document = enhance_file(enhancer, scan, outputs, mask=mask, progress=progress, **settings)
        for note in document["notes"]:
            click.echo(f"lfmri: note: {note}", err=True)
        click.echo(f"wrote {outputs.scan}")
