"""`lfmri train`."""

from pathlib import Path

import click

from lfmri.extras import require
from lfmri_runtime.errors import UsageError


@click.command()
@click.option("--pairs", type=click.Path(path_type=Path), help="Folder of pairs that `lfmri simulate` made.")
@click.option("--run", "run_folder", type=click.Path(path_type=Path), help="Folder of the new run.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="config.json of an earlier run to repeat; options change it."
)
@click.option("--resume", type=click.Path(path_type=Path), help="Run to go on with from its last checkpoint.")
@click.option("--preset", help="Network: iqt-cfm or iqt-cfm-edge.  [default: iqt-cfm]")
@click.option(
    "--prediction", type=click.Choice(["x_1", "velocity"]), help="What the network's output is read as.  [default: x_1]"
)
@click.option("--max-steps", type=int, help="Optimiser steps in all.  [default: 20000]")
@click.option("--batch", type=int, help="Crops a step, over all processes.  [default: 4]")
@click.option("--crop", type=int, help="Side of the square crops, voxels.  [default: 128]")
@click.option("--learning-rate", type=float, help="Adam's rate at the start (assumed).  [default: 2e-4]")
@click.option("--minimum-rate", type=float, help="Rate at the end of the cosine (assumed).  [default: 1e-6]")
@click.option("--weight-decay", type=float, help="L2 weight decay (assumed).  [default: 0]")
@click.option("--gradient-clip", type=float, help="Largest norm of the gradient.  [default: 1]")
@click.option("--scale-jitter", type=float, help="Random relative change of the scan's scale.  [default: 0.1]")
@click.option("--time-power", type=float, help="Times are drawn with density (1 - t)^power.  [default: 0]")
@click.option("--time-zero", type=float, help="Share of the times that are exactly 0.  [default: 0]")
@click.option("--source-std", type=float, help="Standard deviation of x_0.  [default: 1]")
@click.option("--time-weight", type=float, help="The loss at time t is multiplied by (1 - t)^weight.  [default: 0]")
@click.option("--air-weight", type=float, help="Weight of the air's voxels in the loss; the head's is 1.  [default: 1]")
@click.option("--initial", help="Run whose averaged weights the network starts from.")
@click.option("--ema-decay", type=float, help="Decay of the averaged weights.  [default: 0.999]")
@click.option("--voxel-size", type=float, help="Voxel size of the working grid, mm.  [default: 1.0]")
@click.option(
    "--precision", type=click.Choice(["bf16-mixed", "32-true"]), help="Arithmetic of the step.  [default: bf16-mixed]"
)
@click.option("--epoch-steps", type=int, help="Steps between checkpoints.  [default: 250]")
@click.option("--validate-every", type=int, help="Checkpoints between validations.  [default: 2]")
@click.option("--validation-slices", type=int, help="Slices that a validation samples.  [default: 8]")
@click.option("--workers", type=int, help="Loader processes; 0 loads between the steps.  [default: 0]")
@click.option("--devices", type=int, help="Processes (or GPUs) on each node.  [default: 1]")
@click.option("--nodes", type=int, help="Nodes of a distributed run.  [default: 1]")
@click.option("--seed", type=int, help="Seed of weights, crops, noise and times.  [default: 0]")
def train(
    pairs: Path | None, run_folder: Path | None, config: Path | None, resume: Path | None, **options: object
) -> None:
    """Train a model on simulated pairs by conditional flow matching.

    A new run takes --pairs and --run. It can be stopped and goes on with --resume RUN.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if pairs is not None:
        given["pairs"] = str(pairs)
    if resume is not None and (run_folder is not None or config is not None or given):
        raise UsageError("--resume goes on with a run as it was begun; expected no other option beside it")
    if resume is None and run_folder is None:
        raise UsageError("no run folder; expected --run RUN for a new run, or --resume RUN")
    if resume is None and config is None and pairs is None:
        raise UsageError("no pairs; expected --pairs DIR, the folder that `lfmri simulate` made")
    settings_module = require("lfmri_trainer.settings", extra="train")
    train_module = require("lfmri_trainer.train", extra="train")
    settings = settings_module.TrainingSettings
    if resume is not None:
        train_module.train(settings.load(resume / settings_module.CONFIGURATION), resume, resume=True)
    elif config is not None:
        train_module.train(settings.load(config, **given), run_folder)
    else:
        train_module.train(settings(**given), run_folder)
    click.echo(f"trained; export it with: lfmri export {resume or run_folder} --out BUNDLE")
