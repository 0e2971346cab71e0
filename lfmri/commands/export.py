"""`lfmri export`."""

from pathlib import Path

import click

from lfmri.extras import require


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the bundle; must not exist.")
@click.option("--name", help="Name of the model.  [default: the bundle folder's]")
@click.option("--model-version", "version", default="0.1.0", show_default=True, help="Version of the model.")
@click.option("--licence", default="Apache-2.0", show_default=True, help="SPDX expression of the weights' licence.")
@click.option(
    "--precision",
    default="float16",
    show_default=True,
    type=click.Choice(["float16", "float32"]),
    help="Of the weights.",
)
@click.option("--pairs", type=click.Path(path_type=Path), help="Pairs for the golden slices.  [default: the run's]")
def export(run: Path, out: Path, name: str | None, **options: object) -> None:
    """Turn a training run into a bundle that the runtime loads, or refuse with the reason."""
    module = require("lfmri_export.export", extra="export")
    for row in module.export(run, out, name=name or out.name, **options):
        click.echo(
            f"{row.steps:3d} steps: {row.psnr:.1f} dB against the PyTorch sampler, SSIM differs by "
            f"{row.ssim_difference:.1e}, LPIPS by {row.lpips_difference:.1e}"
        )
    click.echo(f"wrote {out}")
