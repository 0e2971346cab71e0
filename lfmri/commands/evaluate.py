"""`lfmri evaluate`."""

from pathlib import Path

import click

from lfmri.extras import require

#: Voxel axis in RAS order that each plane's slices are normal to.
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}


@click.command()
@click.argument("enhanced", metavar="OUT", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@click.option(
    "--mask", type=click.Path(path_type=Path), help="Brain mask on the reference's grid: adds scores inside it."
)
@click.option(
    "--input", "scan", type=click.Path(path_type=Path), help="The low-field scan: adds interpolation to the table."
)
@click.option(
    "--plane", default="coronal", show_default=True, type=click.Choice(list(PLANES)), help="Plane of the scored slices."
)
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Where to write a row per slice.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Where to write rows and summary.")
def evaluate(
    enhanced: Path,
    reference: Path,
    mask: Path | None,
    scan: Path | None,
    plane: str,
    csv_path: Path | None,
    json_path: Path | None,
) -> None:
    """Score an enhanced scan against its high-field reference: PSNR, SSIM, LPIPS.

    With the sidecar of `lfmri enhance`, the reference is mapped onto the model's standard scale first.
    """
    require("skimage", extra="evaluate")
    from lfmri.tables import print_scores
    from lfmri_runtime.comparison import compare
    from lfmri_runtime.evaluation import write_csv, write_json
    from lfmri_runtime.files import check_writable
    from lfmri_runtime.job import check_apart
    from lfmri_runtime.showing import score

    written = [path for path in (csv_path, json_path) if path is not None]
    check_apart(written, inputs=[path for path in (enhanced, reference, mask, scan) if path is not None])
    for path in written:
        check_writable(path)
    figures = score(compare(enhanced, reference=reference, mask=mask, scan=scan), axis=PLANES[plane])
    if csv_path is not None:
        write_csv(csv_path, figures)
    if json_path is not None:
        write_json(json_path, figures)
    print_scores(figures)
