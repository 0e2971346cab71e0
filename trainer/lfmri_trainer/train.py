"""`lfmri train`: from a folder of pairs to a run folder.

RUN/config.json        the resolved settings, enough to repeat the run
RUN/processing.json    what the contract will say of voxel size and intensities
RUN/checkpoints/       last.ckpt, to resume from
RUN/weights.npz        the averaged weights of the last checkpoint, what export takes
RUN/summary.json       steps, pairs and last validation, and the same of the runs that it started from
RUN/logs/              CSV and TensorBoard
"""

import logging
import math
import signal
import warnings
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lfmri_runtime.contract import render
from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_runtime.files import write_text
from lfmri_trainer.callbacks import LastStep, RunRecorder, StepBar, WholeCheckpoints
from lfmri_trainer.loaders import PairsData
from lfmri_trainer.module import FlowModule, exponential_average
from lfmri_trainer.settings import TrainingSettings
from lfmri_trainer.weights import PROCESSING, Learned, learned, load_weights, read_summary, refuse_learned

CHECKPOINT = "checkpoints/last.ckpt"


def train(settings: TrainingSettings, run: Path, *, resume: bool = False) -> None:
    """Train, or go on from the run's last checkpoint.

    Raises:
        UsageError: settings that cannot work together, or a run folder that already holds a run.
        InputRefused: pairs that cannot be used, people held out that the weights learned from, nothing to resume
            from or other pairs than before, or a loss that is not finite.
    """
    settings.check()
    checkpoint = run / CHECKPOINT
    if resume and not checkpoint.is_file():
        raise InputRefused(f"{checkpoint} not found; expected a run that has reached its first checkpoint")
    if not resume and checkpoint.exists():
        raise UsageError(f"{run} already holds a run; go on with --resume {run}, or choose another --run")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # below that it advertises
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)  # hints about numbers of workers and logging intervals
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # so it is when resuming
        warnings.filterwarnings("ignore", "The dirpath has changed")  # the run folder was moved, which is allowed
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")  # Lightning's own
        pl.seed_everything(settings.seed, verbose=False)
        start = Path(settings.initial) if settings.initial else None
        module, data = FlowModule(settings), PairsData(settings, run if resume else start)
        before = _resumed(run, data) if resume else _begun(start, data)
        if start is not None and not resume:
            load_weights(module.network, start)
        trainer = _trainer(settings, run, data, before)
        if trainer.is_global_zero:
            run.mkdir(parents=True, exist_ok=True)
            settings.save(run)
            write_text(run / PROCESSING, render(data.processing))
        _fit(trainer, module, data, checkpoint if resume else None)


def _begun(start: Path | None, data: PairsData) -> Learned:
    """What the weights that a new run starts from have learned from: none of the people that it holds out."""
    before = learned(start)
    refuse_learned(before, (pair.parameters.subject for pair in data.validation_pairs), str(start))
    return before


def _resumed(run: Path, data: PairsData) -> Learned:
    """The same, by the run's own word: what it started from may be gone. Its pairs must be what they were."""
    summary = read_summary(run, "steps")
    if summary.get("pairs_sha256", data.identity) != data.identity:
        raise InputRefused(
            f"{data.settings.pairs} holds other pairs than {run} learns from; expected the same pairs for "
            f"training and validation: take the added ones out, or start a new run with --initial {run}"
        )
    return Learned(
        steps=summary["steps_in_all"] - summary["steps"],
        subjects=tuple(summary["training_subjects"]),
        presets=tuple(summary["presets"]),
        history=summary.get("started_from"),
    )


def _fit(trainer: pl.Trainer, module: FlowModule, data: PairsData, checkpoint: Path | None) -> None:
    """Train; an interrupt leaves by its own exception and a termination by its own exit code, as in any program."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def _trainer(settings: TrainingSettings, run: Path, data: PairsData, before: Learned) -> pl.Trainer:
    folder, last = (run / CHECKPOINT).parent, (run / CHECKPOINT).stem
    callbacks: list[Callback] = [
        WeightAveraging(multi_avg_fn=exponential_average(settings.ema_decay)),
        RunRecorder(run, settings, data, before),
        LastStep(settings.max_steps),
        ModelCheckpoint(
            folder, filename=last, every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False
        ),
        StepBar(settings.max_steps),
    ]
    return pl.Trainer(
        # Lightning looks for a SLURM job's checkpoint here, else in the current folder: another run's may lie there.
        default_root_dir=run,
        accelerator="auto",
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy="ddp" if settings.devices * settings.nodes > 1 else "auto",
        precision=cast(Literal["bf16-mixed", "32-true"], settings.precision),
        max_epochs=math.ceil(settings.max_steps / settings.epoch_steps),
        check_val_every_n_epoch=settings.validate_every,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if data.validation_pairs and settings.validation_slices else 0,
        gradient_clip_val=settings.gradient_clip,
        callbacks=callbacks,
        plugins=_plugins(),
        logger=[CSVLogger(run / "logs", name="csv"), TensorBoardLogger(run / "logs", name="tensorboard")],
        log_every_n_steps=min(10, settings.epoch_steps),
        use_distributed_sampler=False,
        enable_model_summary=False,
    )


def _plugins() -> list[Any]:
    if not SLURMEnvironment.detect() or TorchElasticEnvironment.detect():  # torchrun comes first, as with Lightning
        return [WholeCheckpoints()]
    # Left to itself it saves hpc_ckpt_1.ckpt and requeues the job, whose command would then begin a new run.
    return [WholeCheckpoints(), SLURMEnvironment(auto_requeue=False)]
