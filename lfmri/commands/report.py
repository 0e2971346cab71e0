"""`lfmri report`."""

from pathlib import Path

import click

from lfmri.commands.evaluate import PLANES
from lfmri.extras import require


@click.command()
@click.argument("enhanced", metavar="OUT", type=click.Path(path_type=Path))
@click.option("-o", "--out", "page", required=True, type=click.Path(path_type=Path), help="The HTML page.")
@click.option("--input", "scan", type=click.Path(path_type=Path), help="The low-field scan that was enhanced.")
@click.option("--reference", type=click.Path(path_type=Path), help="The high-field scan: adds figures and error maps.")
@click.option("--mask", type=click.Path(path_type=Path), help="Brain mask on the reference's grid.")
@click.option("--uncertainty", type=click.Path(path_type=Path), help="Standard deviation that `lfmri enhance` wrote.")
@click.option(
    "--plane", default="coronal", show_default=True, type=click.Choice(list(PLANES)), help="Plane of the scored slices."
)
def report(page: Path, enhanced: Path, plane: str, **files: Path | None) -> None:
    """Write one self-contained HTML page that shows an enhanced scan beside its input and reference."""
    require("skimage", extra="evaluate")
    from lfmri_runtime.files import check_writable
    from lfmri_runtime.job import check_apart
    from lfmri_runtime.showing import show

    check_apart([page], inputs=[enhanced, *(path for path in files.values() if path is not None)])
    check_writable(page)
    show(page, enhanced, axis=PLANES[plane], **files)
    click.echo(f"wrote {page}")
