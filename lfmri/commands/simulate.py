"""`lfmri simulate`."""

from pathlib import Path

import click

from lfmri.extras import require
from lfmri.options import subjects_option
from lfmri.progress import progress_bar


@click.command()
@subjects_option
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of pairs; more presets may be added to it."
)
@click.option(
    "--preset", required=True, help="siqt-k4, siqt-k8, siqt-k4-noisy, siqt-k4-ood, siqt-k8-ood or ultra-low-field."
)
@click.option("--draws", default=1, show_default=True, type=click.IntRange(min=1), help="Pairs of each subject.")
@click.option(
    "--thick-axis",
    default="S",
    show_default=True,
    type=click.Choice(["R", "A", "S", "random"]),
    help="Axis of the thick slices.",
)
@click.option(
    "--fixed", default="GM", show_default=True, type=click.Choice(["WM", "GM"]), help="Tissue that keeps its intensity."
)
@click.option(
    "--validation",
    default=0.2,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of subjects held out for validation, unless named.",
)
@click.option(
    "--validation-subject", "validation_subjects", multiple=True, help="Subject held out for validation; repeatable."
)
@click.option("--test-subject", "test_subjects", multiple=True, help="Subject that is never trained on; repeatable.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of every draw.")
@click.option(
    "--workers", default=2, show_default=True, type=click.IntRange(min=1), help="Subjects simulated at the same time."
)
def simulate(subjects: Path, out: Path, workers: int, **settings: object) -> None:
    """Make low/high-field pairs from a folder of high-field subjects.

    Run again with the same settings, it goes on where it stopped.
    """
    module = require("lfmri_trainer.simulation.simulate", extra="train")
    with progress_bar("simulating") as progress:
        pairs = module.simulate_folder(
            subjects, out, module.SimulationSettings(**settings), workers=workers, progress=progress
        )
    click.echo(f"{len(pairs)} pairs of {len({pair.subject for pair in pairs})} subjects in {out}")
