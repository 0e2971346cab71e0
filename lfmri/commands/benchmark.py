"""`lfmri benchmark`."""

import sys
from pathlib import Path

import click

from lfmri.extras import require
from lfmri.progress import progress_bar
from lfmri_runtime.errors import UsageError


@click.command()
@click.option("--pairs", type=click.Path(path_type=Path), help="Folder of pairs that `lfmri simulate` made.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the tables, figures and page.")
@click.option("--bundle", type=click.Path(path_type=Path), help="The proposed model.  [default: the built-in one]")
@click.option(
    "--methods", help="What to compare, with commas between.  [default: all; with --quick, what needs no fit]"
)
@click.option(
    "--steps", help="Numbers of Euler steps of the bundle.  [default: 1,2,5,10,20; with --quick, 1,2]", metavar="TEXT"
)
@click.option("--uncertainty-steps", default="5", show_default=True, help="Those whose uncertainty is checked.")
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    help="Draws of each scan to check the uncertainty by; 0 leaves it out.  [default: 5; with --quick, 0]",
)
@click.option(
    "--consistency-scans",
    type=click.IntRange(min=0),
    help="Whole scans of each set to try the check of consistency on; 0 leaves it out.  [default: 2; with --quick, 0]",
)
@click.option("--ind", default="siqt-k4", show_default=True, help="Preset of the in-distribution test pairs.")
@click.option("--ood", default="siqt-k4-ood", show_default=True, help="Preset of the out-of-distribution ones.")
@click.option("--ind-slices", default=300, show_default=True, type=click.IntRange(min=1), help="Slices of the first.")
@click.option("--ood-slices", default=200, show_default=True, type=click.IntRange(min=1), help="Slices of the other.")
@click.option(
    "--fit", "fits", multiple=True, metavar="METHOD:KEY=VALUE,...", help="Settings of a baseline's fit; repeatable."
)
@click.option("--fitted", type=click.Path(path_type=Path), help="Folder of fitted baselines.  [default: OUT/fitted]")
@click.option("--threads", default=0, show_default=True, type=click.IntRange(min=0), help="0 takes all cores.")
@click.option("--resume", is_flag=True, help="Go on with the benchmark in --out where it stopped.")
@click.option("--quick", is_flag=True, help="A few slices of the built-in sample, without --pairs.")
def benchmark(
    pairs: Path | None,
    out: Path,
    bundle: Path | None,
    methods: str | None,
    steps: str | None,
    uncertainty_steps: str,
    samples: int | None,
    consistency_scans: int | None,
    ind: str,
    ood: str,
    ind_slices: int,
    ood_slices: int,
    fits: tuple[str, ...],
    fitted: Path | None,
    threads: int,
    resume: bool,
    quick: bool,
) -> None:
    """Compare the bundle with other methods on unseen subjects: the paper's Table 1 and Figures 4 and 5.

    Baselines that are not fitted yet are fitted first, on the split train of the pairs.
    """
    run = require("lfmri_trainer.benchmark.run", extra="train")
    report = require("lfmri_trainer.benchmark.report", extra="train")
    calibration = require("lfmri_trainer.calibration", extra="train")
    uncertainty = require("lfmri_trainer.benchmark.calibration", extra="train")
    consistency = require("lfmri_trainer.benchmark.consistency", extra="train")
    plain = require("lfmri_trainer.benchmark.unaltered", extra="train")
    sample = require("lfmri_trainer.benchmark.quick", extra="train")
    provenance = require("lfmri_trainer.benchmark.provenance", extra="train")
    from lfmri_runtime.bundle import open_bundle
    from lfmri_runtime.files import check_writable

    if (pairs is None) != quick:
        raise UsageError("expected either --pairs DIR, the folder that `lfmri simulate` made, or --quick")
    if samples is None:
        samples = 0 if quick else calibration.SAMPLES
    if samples == 1:
        raise UsageError("--samples is 1; expected at least 2 draws, which differ, or 0 to leave the uncertainty out")
    checked = _numbers(uncertainty_steps, option="--uncertainty-steps", least=2) if samples else ()
    sets = (("InD", ind, ind_slices), ("OOD", ood, ood_slices))
    settings = run.BenchmarkSettings(
        methods=run.every_method(fitted=not quick) if methods is None else tuple(methods.split(",")),
        steps=_numbers(steps or ("1,2" if quick else "1,2,5,10,20"), option="--steps", least=1),
        sets=sets if pairs is not None else (("InD", sample.SAMPLE.preset, sample.SLICES),),
        fitted=fitted,
        changes=_changes(fits),
        threads=threads,
        made=provenance.maker(),
    )
    check_writable(out / report.PAGE)
    opened = open_bundle(bundle)
    folder = sample.sample_pairs(out / "sample") if pairs is None else pairs
    compared, every = run.score_methods(folder, out, opened, settings, resume=resume, progress=progress_bar)
    measured = []
    if checked:
        with progress_bar("checking the uncertainty") as progress:
            measured = uncertainty.measure(
                folder, out, opened, every, steps=checked, samples=samples, threads=threads, progress=progress
            )
    scans = consistency.SCANS if consistency_scans is None and not quick else consistency_scans or 0
    altered, unaltered = [], []
    if scans:
        with progress_bar("checking the consistency") as progress:
            altered = consistency.measure(folder, out, opened, every, scans=scans, threads=threads, progress=progress)
        with progress_bar("checking scans as they are enhanced") as progress:
            unaltered = plain.measure(folder, out, opened, every, threads=threads, progress=progress)
    command = provenance.command_line(sys.argv[1:])
    written = report.write_report(
        *(out, every, compared, measured, altered, unaltered), pairs=folder, bundle=opened, command=command
    )
    click.echo(f"wrote {', '.join(path.name for path in written)} in {out}")


def _numbers(text: str, *, option: str, least: int) -> tuple[int, ...]:
    try:
        numbers = tuple(int(word) for word in text.split(","))
    except ValueError:
        numbers = (0,)
    if not all(least <= number <= 1000 for number in numbers) or len(set(numbers)) < len(numbers):
        raise UsageError(f"{option} is {text!r}; expected different numbers from {least} to 1000 with commas between")
    return numbers


def _changes(fits: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """METHOD:KEY=VALUE,KEY=VALUE, each once."""
    changes: dict[str, dict[str, str]] = {}
    for fit in fits:
        method, _, rest = fit.partition(":")
        for setting in rest.split(","):
            key, sign, value = setting.partition("=")
            if not sign:
                raise UsageError(f"--fit is {fit!r}; expected METHOD:KEY=VALUE,KEY=VALUE")
            changes.setdefault(method, {})[key] = value
    return changes
