"""`lfmri enhance`."""

from pathlib import Path

import click

from lfmri.options import backend_options, bundle_option
from lfmri.progress import progress_bar
from lfmri_runtime.errors import InputRefused, UsageError


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
    "--uncertainty", type=click.Path(path_type=Path), help="Where to write one standard deviation of the error."
)
@click.option(
    "--residual",
    type=click.Path(path_type=Path),
    help="Where to write what of the scan the enhanced one does not explain, in units of the scan's noise.",
)
@click.option(
    "--grid",
    type=click.Choice(["isotropic", "input"]),
    help="Grid of the output.  [default: isotropic; input for DICOM]",
)
@click.option(
    "--thick-axis",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "R", "A", "S", "none"]),
    help="Axis of the thick slices; auto reads the header.",
)
@click.option(
    "--slice-thickness",
    type=float,
    metavar="MM",
    help="Of the scan, without the gap, for the check of consistency.  [default: the slice spacing]",
)
@click.option(
    "--mask", type=click.Path(path_type=Path), help="Brain or head mask on the scan's grid; outside becomes zero."
)
@click.option(
    "--report", "page", type=click.Path(path_type=Path), help="Where to write an HTML page that shows the result."
)
@click.option("--label", help="Your own text for the description of an enhanced DICOM series.")
@backend_options
@click.option("--require", is_flag=True, help="Refuse rather than run anything but that --backend and --precision.")
def enhance(
    scans: tuple[Path, ...],
    out: Path,
    bundle: Path | None,
    uncertainty: Path | None,
    residual: Path | None,
    mask: Path | None,
    page: Path | None,
    label: str | None,
    backend: str,
    precision: str | None,
    require: bool,
    threads: int,
    grid: str | None,
    **settings: object,
) -> None:
    """Enhance low-field scans: .nii, .nii.gz, .mgz, a folder of DICOM files or one of Enhanced MR.

    Beside each output a .json says how it was made. The input is never changed. For DICOM the output is a folder.
    """
    from lfmri.dicom import check_dicom, enhance_dicom, is_dicom
    from lfmri_runtime.bundle import open_bundle
    from lfmri_runtime.enhancer import Enhancer
    from lfmri_runtime.job import Outputs, check_outputs, enhance_file

    if len(scans) > 1 and (uncertainty or residual or mask or page):
        raise UsageError(
            "--uncertainty, --residual, --mask, --report belong to one scan; expected one SCAN beside them"
        )
    if uncertainty is not None and settings["samples"] == 1:
        raise UsageError("--uncertainty needs several draws; expected --samples of at least 2")
    if require and backend == "auto" and precision is None:
        raise UsageError("--require says that nothing else may run; expected --backend or --precision beside it")
    targets = [out] if len(scans) == 1 else [out / _name_of(scan) for scan in scans]
    jobs = [(scan, Outputs(target, uncertainty, page, residual)) for scan, target in zip(scans, targets, strict=True)]
    dicom = [job for job in jobs if is_dicom(job[0])]
    check_outputs([job for job in jobs if job not in dicom], kept=[] if mask is None else [mask])
    check_dicom(dicom, mask=mask, label=label)
    enhancer = Enhancer(open_bundle(bundle), backend=backend, precision=precision, require=require, threads=threads)
    refused = []
    for scan, outputs in jobs:
        try:
            if (scan, outputs) in dicom:
                enhance_dicom(enhancer, scan, outputs, label=label, grid=grid or "input", **settings)
                continue
            with progress_bar(f"enhancing {scan.name}") as progress:
                document = enhance_file(
                    enhancer, scan, outputs, mask=mask, progress=progress, grid=grid or "isotropic", **settings
                )
        except InputRefused as refusal:
            refused.append(refusal)  # the scans behind it are enhanced all the same
            continue
        for note in document["notes"]:
            click.echo(f"lfmri: note: {note}", err=True)
        click.echo(f"wrote {outputs.scan}")
    for other in refused[1:]:
        click.echo(f"lfmri: note: {other}", err=True)
    if refused:
        raise refused[0]


def _name_of(scan: Path) -> str:
    """What a scan's results are called in a folder; . and .. are no names, a link has its own."""
    return scan.name if scan.name.strip(".") else scan.resolve().name
