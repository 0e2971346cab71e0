"""`lfmri export`: a run to a bundle, or a bundle to TensorRT engines."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lfmri.extras import require
from lfmri.progress import progress_bar
from lfmri_runtime.errors import UsageError

if TYPE_CHECKING:
    from lfmri_runtime.backends.tensorrt.identity import Profile
    from lfmri_runtime.bundle import Bundle

RUN, TRT, RTX = "RUN", "--trt", "--trt-rtx"
#: What each option goes with; every other pair is a usage error.
GOES_WITH = {
    **dict.fromkeys(("run", "out", "name", "version", "licence", "precision", "pairs", "data"), (RUN,)),
    **dict.fromkeys(("bundle", "profile", "cache", "rebuild"), (TRT, RTX)),
    **dict.fromkeys(("trt", "version_compatible", "hardware_compatible"), (TRT,)),
    **dict.fromkeys(("trt_rtx", "targets"), (RTX,)),
}
#: Down to the smallest slices that a bundle takes, up to a field of view of 384 mm; tuned for a head at 1 mm.
DEFAULT_PROFILE = "1x{0}x{0},2x192x192,4x384x384"


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the bundle; must not exist.")
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
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    help="Pairs for the golden slices and the uncertainty.  [default: the run's]",
)
@click.option("--data", help="Where the training subjects come from, for the model card: source and licence.")
@click.option("--trt", is_flag=True, help="Build a TensorRT engine of a bundle on this machine's GPU.")
@click.option("--trt-rtx", is_flag=True, help="Build TensorRT-RTX engines of a bundle for RTX cards; needs no GPU.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle of the engine.  [default: the built-in one]")
@click.option(
    "--profile",
    help="Smallest, usual and largest BATCHxROWSxCOLUMNS of the engine.  [default: 1x8x8,2x192x192,4x384x384]",
)
@click.option("--version-compatible", is_flag=True, help="Engine runs on later versions of TensorRT too.")
@click.option(
    "--hardware-compatible", is_flag=True, help="Engine runs on all GPUs from compute capability 8.0; not on a Jetson."
)
@click.option(
    "--target", "targets", multiple=True, help="Card of a TensorRT-RTX engine.  [default: SM86, SM89 and SM120]"
)
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of the engines.  [default: the user's cache]")
@click.option("--rebuild", is_flag=True, help="Build the engine even where there is one.")
def export(run: Path | None, trt: bool, trt_rtx: bool, **options: Any) -> None:
    """Turn a training RUN into a bundle that the runtime loads, or refuse with the reason.

    With --trt or --trt-rtx in place of a RUN: turn a bundle into TensorRT engines.
    """
    mode = TRT if trt else RTX if trt_rtx else RUN
    wanted = {name: value for name, value in options.items() if mode in GOES_WITH[name]}
    _check(click.get_current_context(), mode)
    if mode == RUN:
        _export_bundle(run, **wanted)
    else:
        _export_engines(mode, **wanted)


def _check(context: click.Context, mode: str) -> None:
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and mode not in GOES_WITH[str(parameter.name)]:
            places = " or ".join(GOES_WITH[str(parameter.name)])
            raise UsageError(f"{parameter.opts[-1]} does not go with {mode}; expected it with {places}")


def _export_bundle(run: Path | None, *, out: Path | None, name: str | None, **options: Any) -> None:
    if run is None or out is None:
        raise UsageError("expected RUN --out BUNDLE for a bundle, or --trt or --trt-rtx for engines")
    from lfmri_runtime.bundle import open_bundle

    module = require("lfmri_export.export", extra="export")
    with progress_bar("exporting") as progress:
        parity = module.export(run, out, name=name or out.name, progress=progress, **options)
    for row in parity:
        click.echo(
            f"{row.steps:3d} steps: {row.psnr:.1f} dB against the PyTorch sampler, SSIM differs by "
            f"{row.ssim_difference:.1e}, LPIPS by {row.lpips_difference:.1e}"
        )
    known = open_bundle(out).contract.uncertainty
    for calibration in known:
        click.echo(f"{calibration.steps:3d} steps: uncertainty scaled by {calibration.scale:.2f}")
    if not known:
        click.echo("no validation scan to fit an uncertainty on: its map will be the bare deviation over samples")
    click.echo(f"wrote {out}")


def _export_engines(mode: str, *, bundle: Path | None, profile: str | None, **options: Any) -> None:
    from lfmri_runtime.backends.tensorrt.identity import parse_profile
    from lfmri_runtime.bundle import open_bundle

    opened = open_bundle(bundle)
    multiple = opened.contract.processing.multiple
    shapes = parse_profile(profile or DEFAULT_PROFILE.format(multiple), multiple=multiple)
    targets = options.pop("targets", ())
    with progress_bar("building the engine") as progress:
        options.update(say=lambda line: click.echo(f"lfmri: {line}", err=True), progress=progress)
        for path, new in _engines(mode, opened, shapes, targets, options):
            click.echo(f"wrote {path}" if new else f"{path} is there already; --rebuild makes it again")


def _engines(
    mode: str, bundle: "Bundle", profile: "Profile", targets: tuple[str, ...], options: dict[str, Any]
) -> Iterator[tuple[Path, bool]]:
    if mode == TRT:
        from lfmri_export.engine import export_engine

        yield export_engine(bundle, profile, **options)
    else:
        from lfmri_export.rtx import TARGETS, export_rtx_engines

        yield from export_rtx_engines(bundle, profile, targets=targets or TARGETS, **options)
