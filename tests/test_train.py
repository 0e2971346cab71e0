"""`lfmri train`: the run folder, resuming, several processes, interrupts. A tiny folder of pairs, seconds a run."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from numpy.typing import NDArray

import lfmri_trainer.callbacks as callbacks_module
import lfmri_trainer.module as flow_module
from lfmri.commands.train import train as train_command
from lfmri_runtime.contract import Processing, decode
from lfmri_runtime.errors import BundleRefused, InputRefused, UsageError
from lfmri_trainer.callbacks import StepBar, WholeCheckpoints
from lfmri_trainer.flow import flow_matching_loss
from lfmri_trainer.loaders import PairsData
from lfmri_trainer.module import FlowModule, exponential_average
from lfmri_trainer.network.presets import build_network
from lfmri_trainer.settings import TrainingSettings
from lfmri_trainer.simulation.pairs import read_pairs, write_pairs
from lfmri_trainer.train import _plugins, train
from lfmri_trainer.weights import learned, stretches

from .training_fixtures import tiny_settings, write_tiny_pairs

Weights = dict[str, NDArray[np.float32]]

ROOT = Path(__file__).parents[1]
#: Runs in a process of its own, as `lfmri train` does; several processes start the script again.
SCRIPT = """
import sys
from pathlib import Path
from lfmri_trainer.settings import TrainingSettings
from lfmri_trainer.train import train

if __name__ == "__main__":
    train(TrainingSettings.load(Path(sys.argv[1])), Path(sys.argv[2]), resume="--resume" in sys.argv)
"""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pairs(tmp_path_factory.mktemp("tiny") / "pairs")


@pytest.fixture(scope="module")
def settings(pairs: Path) -> TrainingSettings:
    return tiny_settings(pairs)


@pytest.fixture(scope="module")
def run(settings: TrainingSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps; tests only read it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(settings, folder)
    return folder


class CrashError(Exception):
    """Ends a run in the middle, as a crash would."""


@contextmanager
def stopping(at: int, error: BaseException) -> Iterator[None]:
    """Raise in the training step that follows `at` steps."""
    original = FlowModule.training_step

    def training_step(self: FlowModule, batch: Any, batch_index: int) -> Any:
        if self.global_step == at:
            raise error
        return original(self, batch, batch_index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlowModule, "training_step", training_step)
        yield


@contextmanager
def watching() -> Iterator[list[tuple[int, float]]]:
    """List each step's number and the sum of its noise, which tells the samples."""
    seen: list[tuple[int, float]] = []
    original = FlowModule.training_step

    def training_step(self: FlowModule, batch: Any, batch_index: int) -> Any:
        seen.append((self.global_step, float(batch["x_0"].sum())))
        return original(self, batch, batch_index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlowModule, "training_step", training_step)
        yield seen


def weights_of(run: Path) -> Weights:
    with np.load(run / "weights.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def checkpoint_of(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return loaded


def assert_equal(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def logged(run: Path) -> list[dict[str, str]]:
    """The rows of all CSV logs of a run, in the order of their writing."""
    rows = []
    for path in sorted(run.glob("logs/csv/version_*/metrics.csv")):
        with path.open(newline="") as stream:
            rows += list(csv.DictReader(stream))
    return rows


def start(script: Path, config: Path, run: Path, *options: str) -> "subprocess.Popen[str]":
    path = os.pathsep.join(str(ROOT / part) for part in (".", "runtime", "export", "trainer"))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    for name in ("MASTER_PORT", "MASTER_ADDR", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "RANK"):
        environment.pop(name, None)
    return subprocess.Popen(
        [sys.executable, str(script), str(config), str(run), *options],
        env=environment,
        cwd=script.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]", *, timeout: float) -> str:
    """Wait and give what was printed; no process of the test is left behind."""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return output


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train_tiny.py"
    path.write_text(SCRIPT)
    return path


def save(settings: TrainingSettings, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    settings.save(folder)
    return folder / "config.json"


def test_a_run_leaves_the_documented_folder(run: Path, settings: TrainingSettings) -> None:
    found = {path.name for path in run.iterdir()}
    assert found == {"config.json", "processing.json", "checkpoints", "weights.npz", "summary.json", "logs"}
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert TrainingSettings.load(run / "config.json") == settings
    processing: Processing = decode(Processing, json.loads((run / "processing.json").read_text()), "processing.json")
    assert processing == PairsData(settings).processing
    assert not list(run.rglob(".*")), "no temporary file is left"


def test_the_summary_says_what_was_trained(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    metrics = summary.pop("last_metrics")
    assert (summary["steps"], summary["steps_in_all"]) == (4, 4)
    assert (summary["batch"], summary["crop"], summary["training_pairs"]) == (2, 32, 2)
    assert (summary["training_subjects"], summary["validation_subjects"]) == (["s1", "s2"], ["s3"])
    assert summary["presets"] == ["tiny"]
    assert {"train/loss", "validation/psnr", "validation/psnr_interpolation", "validation/lpips"} <= metrics.keys()
    assert all(np.isfinite(value) for value in metrics.values())


def test_a_run_that_starts_from_another_counts_what_that_one_learned_from(
    pairs: Path, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "earlier")
    known = (run / "processing.json").read_text()
    other = known.replace('"target": 0.', '"target": 0.0')
    assert other != known
    (tmp_path / "earlier" / "processing.json").write_text(other)
    summary = {"steps_in_all": 7, "training_subjects": ["s0", "s2"], "presets": ["siqt-k8"]}
    (tmp_path / "earlier" / "summary.json").write_text(json.dumps(summary))
    train(tiny_settings(pairs, max_steps=1, initial=str(tmp_path / "earlier")), tmp_path / "run")
    found = learned(tmp_path / "run")
    assert (found.steps, found.subjects) == (8, ("s0", "s1", "s2"))
    assert set(found.presets) > {"siqt-k8"}
    assert found.history is not None
    (earlier,) = list(stretches(found.history))[1:]  # kept by the run itself
    assert summary.items() < earlier.items()
    assert earlier["settings"]["batch"] == found.history["batch"]
    assert str(tmp_path) not in json.dumps(found.history)
    assert (tmp_path / "run" / "processing.json").read_text() == other  # the scale by which its weights know scans
    (tmp_path / "earlier" / "summary.json").write_text("{}")
    with pytest.raises(BundleRefused, match=r"summary\.json: 'steps_in_all'; expected a run of this version"):
        train(tiny_settings(pairs, initial=str(tmp_path / "earlier")), tmp_path / "other")
    (tmp_path / "earlier" / "processing.json").unlink()
    with pytest.raises(BundleRefused, match=r"processing\.json: .*; expected the run that"):
        train(tiny_settings(pairs, initial=str(tmp_path / "earlier")), tmp_path / "other")


def test_the_logs_tell_the_loss_and_both_scores(run: Path) -> None:
    rows = logged(run)
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    assert len(losses) == 2, "the last step of each epoch of two"
    assert all(np.isfinite(losses))
    validations = [row for row in rows if row.get("validation/psnr")]
    assert [int(row["step"]) for row in validations] == [1, 3]
    assert [path.name.split(".")[0] for path in run.glob("logs/tensorboard/version_0/events*")] == ["events"]


def test_validation_measures_psnr_at_one_step_and_lpips_at_ten(
    settings: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = FlowModule(settings)
    images = {steps: torch.full((1, 1, 48, 48), steps / 20) for steps in (1, 10)}

    def sample(network: Any, x_0: Any, y: Any, *, steps: int, prediction: str) -> torch.Tensor:
        assert prediction == "x_1"
        return images[steps]

    values: dict[str, float] = {}
    monkeypatch.setattr("lfmri_trainer.module.sample", sample)
    monkeypatch.setattr(module, "log_dict", lambda found, **_: values.update(found))
    lpips_of: list[NDArray[np.float32]] = []
    monkeypatch.setattr(module, "_lpips", lambda image, reference: lpips_of.append(image) or np.array([0.25]))
    y, x_1 = torch.full((1, 1, 48, 48), 0.3), torch.full((1, 1, 48, 48), 0.15)
    module.validation_step({"x_0": y, "y": y, "x_1": x_1}, 0)
    assert values["validation/psnr"] == pytest.approx(20, abs=1e-3)  # 1/20 against 0.15
    assert values["validation/psnr_interpolation"] == pytest.approx(-20 * np.log10(0.15), abs=1e-3)
    assert values["validation/lpips"] == 0.25
    np.testing.assert_array_equal(lpips_of[0], images[10][:, 0].numpy())


def test_the_weights_are_the_checkpoints_average_and_load(run: Path) -> None:
    checkpoint, weights = checkpoint_of(run), weights_of(run)
    averaged = {name.removeprefix("network."): value.numpy() for name, value in checkpoint["state_dict"].items()}
    assert_equal(weights, averaged)
    current = {name.removeprefix("network."): value for name, value in checkpoint["current_model_state"].items()}
    assert any(not np.array_equal(weights[name], value.numpy()) for name, value in current.items())
    build_network("iqt-cfm-edge").load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})


def test_the_average_is_the_documented_one(settings: TrainingSettings, tmp_path: Path) -> None:
    history: list[Weights] = []
    original = FlowModule.on_train_batch_start

    def record(self: FlowModule, *arguments: Any) -> Any:
        history.append({name: value.detach().numpy().copy() for name, value in self.network.named_parameters()})
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlowModule, "on_train_batch_start", record)
        train(settings, tmp_path / "run")
    last = {
        name.removeprefix("network."): value.numpy()
        for name, value in checkpoint_of(tmp_path / "run")["current_model_state"].items()
    }
    history.append(last)
    expected = history[1]  # after the first step
    for number, current in enumerate(history[2:], start=1):
        decay = min(0.999, (1 + number) / (10 + number))
        expected = {name: decay * expected[name] + (1 - decay) * current[name] for name in current}
    found = weights_of(tmp_path / "run")
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6, err_msg=name)


def test_the_averages_decay_grows_to_its_limit() -> None:
    average = exponential_average(0.9)
    for number, weight in ((0, 0.9), (torch.tensor(8), 0.5), (10_000, 0.1)):
        averaged = [torch.zeros(1), torch.full((2,), 3.0)]
        average(averaged, [torch.ones(1), torch.full((2,), 5.0)], number)
        assert averaged[0].item() == pytest.approx(weight)
        assert averaged[1].tolist() == pytest.approx([3 + 2 * weight] * 2)


def test_the_configuration_repeats_the_run(run: Path, tmp_path: Path) -> None:
    train(TrainingSettings.load(run / "config.json"), tmp_path / "again")
    assert_equal(weights_of(tmp_path / "again"), weights_of(run))


def test_another_seed_makes_another_run(run: Path, settings: TrainingSettings, tmp_path: Path) -> None:
    train(TrainingSettings.load(run / "config.json", seed=6), tmp_path / "other")
    assert not np.array_equal(weights_of(tmp_path / "other")["fuse.weight"], weights_of(run)["fuse.weight"])


def test_a_training_step_weighs_the_loss_as_the_settings_say(
    settings: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = FlowModule(replace(settings, air_weight=0.25, time_weight=1.0))
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    x_1 = torch.tensor([[[[0.0, 0.5]]]])
    error = torch.tensor([[[[2.0, 1.0]]]])  # in the air, in the head
    module.network.forward = lambda x_t, y, t: x_1 + error
    zeros = torch.zeros_like(x_1)
    loss = module.training_step({"x_0": zeros, "x_1": x_1, "y": zeros, "t": torch.tensor([0.75])}, 0)
    assert loss.item() == pytest.approx(0.25 / 0.25**2 * (0.25 * 4 + 1) / 2)


@pytest.mark.parametrize("prediction", ["x_1", "velocity"])
def test_training_lowers_the_loss_of_a_batch(pairs: Path, prediction: str) -> None:
    torch.manual_seed(0)
    settings = tiny_settings(pairs, prediction=prediction, learning_rate=1e-3, max_steps=30)
    module = FlowModule(settings)
    batch = next(iter(PairsData(settings).train_dataloader()))
    configured: Any = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    losses, rates = [], []
    for _ in range(30):
        loss = flow_matching_loss(
            module.network, batch["x_0"], batch["x_1"], batch["y"], batch["t"], prediction=prediction
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    assert losses[-1] < 0.5 * losses[0]
    assert rates[0] == 1e-3
    assert sorted(rates, reverse=True) == rates
    assert optimizer.param_groups[0]["lr"] == pytest.approx(settings.minimum_rate), "the cosine ends with the run"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_is_the_run_that_was_not_stopped(pairs: Path, tmp_path: Path, workers: int) -> None:
    settings = tiny_settings(pairs, max_steps=6, validate_every=2, workers=workers)
    with watching() as whole:
        train(settings, tmp_path / "whole")
    with stopping(3, CrashError()), watching() as begun, pytest.raises(CrashError):
        train(settings, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2
    with watching() as gone_on:
        train(settings, tmp_path / "run", resume=True)
    assert len({noise for _, noise in whole}) == 6, "every step has samples of its own"
    assert begun[:3] == whole[:3]
    assert gone_on == whole[2:], "no sample is left out or seen twice"
    assert_equal(weights_of(tmp_path / "run"), weights_of(tmp_path / "whole"))
    validated = [
        [row["step"] for row in logged(tmp_path / name) if row.get("validation/psnr")] for name in ("run", "whole")
    ]
    assert validated[0] == validated[1] == ["3"]


def test_a_run_resumes_after_its_folder_was_moved(settings: TrainingSettings, run: Path, tmp_path: Path) -> None:
    with stopping(2, CrashError()), pytest.raises(CrashError):
        train(settings, tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    train(settings, tmp_path / "after", resume=True)
    assert_equal(weights_of(tmp_path / "after"), weights_of(run))
    assert [path.name for path in (tmp_path / "after" / "checkpoints").iterdir()] == ["last.ckpt"]
    assert checkpoint_of(tmp_path / "after")["global_step"] == 4
    assert not (tmp_path / "before").exists()


def test_resuming_a_finished_run_changes_nothing(settings: TrainingSettings, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    before = weights_of(tmp_path / "run")
    with watching() as seen:
        train(settings, tmp_path / "run", resume=True)
    assert seen == []
    assert_equal(weights_of(tmp_path / "run"), before)


def test_a_slurm_job_begins_at_the_beginning_and_resumes_from_its_own_run(
    settings: TrainingSettings, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    for name in ("NTASKS", "NTASKS_PER_NODE", "JOB_ID"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    monkeypatch.chdir(tmp_path)
    shutil.copy(run / "checkpoints" / "last.ckpt", "hpc_ckpt_1.ckpt")
    handlers = []
    original = FlowModule.on_train_start

    def look(self: FlowModule) -> None:
        handlers.append(signal.getsignal(signal.SIGUSR1))
        original(self)

    monkeypatch.setattr(FlowModule, "on_train_start", look)
    with watching() as seen, stopping(2, CrashError()), pytest.raises(CrashError):
        train(settings, tmp_path / "run")
    assert [step for step, _ in seen] == [0, 1]
    with watching() as gone_on:
        train(settings, tmp_path / "run", resume=True)
    assert [step for step, _ in gone_on] == [2, 3]
    assert_equal(weights_of(tmp_path / "run"), weights_of(run))
    assert handlers == [signal.SIG_DFL] * 2, "no handler of Lightning's saves and requeues"


def test_torchrun_inside_a_slurm_job_says_which_process_is_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert [type(one) for one in _plugins()] == [WholeCheckpoints, SLURMEnvironment]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert [type(one) for one in _plugins()] == [WholeCheckpoints]


def test_a_last_epoch_that_is_not_full_leaves_its_checkpoint(pairs: Path, tmp_path: Path) -> None:
    with watching() as seen:
        train(tiny_settings(pairs, max_steps=5, validate_every=3), tmp_path / "run")
    assert [step for step, _ in seen] == [0, 1, 2, 3, 4]
    checkpoint = checkpoint_of(tmp_path / "run")
    assert checkpoint["global_step"] == 5
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 5
    averaged = {name.removeprefix("network."): value.numpy() for name, value in checkpoint["state_dict"].items()}
    assert_equal(weights_of(tmp_path / "run"), averaged)
    assert [row["step"] for row in logged(tmp_path / "run") if row.get("validation/psnr")] == ["4"]


def test_fewer_steps_than_an_epoch(pairs: Path, tmp_path: Path) -> None:
    train(tiny_settings(pairs, max_steps=1, epoch_steps=250), tmp_path / "run")
    assert checkpoint_of(tmp_path / "run")["global_step"] == 1


def test_without_a_validation_split_nothing_is_validated(tmp_path: Path) -> None:
    folder = write_tiny_pairs(tmp_path / "pairs", (("s1", "train", "S"),))
    train(tiny_settings(folder, max_steps=1), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["validation_subjects"] == []
    assert not any(name.startswith("validation/") for name in summary["last_metrics"])


def test_bfloat16_arithmetic_keeps_float32_weights(pairs: Path, run: Path, tmp_path: Path) -> None:
    settings = tiny_settings(pairs, precision="bf16-mixed", validation_slices=1, validate_every=2)
    train(settings, tmp_path / "run")  # one slice is validated: a CPU may imitate bfloat16
    found, exact = weights_of(tmp_path / "run"), weights_of(run)
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    assert not np.array_equal(found["fuse.weight"], exact["fuse.weight"])
    np.testing.assert_allclose(found["fuse.weight"], exact["fuse.weight"], rtol=0, atol=2e-3)


def test_every_setting_is_an_option_of_that_name_with_that_default() -> None:
    options = {parameter.name: parameter for parameter in train_command.params}
    for field in fields(TrainingSettings):
        assert field.name in options, f"--{field.name.replace('_', '-')}"
        shown = re.search(r"\[default: (\S+)\]", getattr(options[field.name], "help", None) or "")
        if shown is not None:
            assert type(field.default)(shown[1]) == field.default, field.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "unet"}, "--preset is 'unet'; expected one of iqt-cfm, iqt-cfm-edge"),
        ({"prediction": "x_0"}, "--prediction is 'x_0'; expected one of x_1, velocity"),
        ({"precision": "16-true"}, "--precision is '16-true'"),
        ({"batch": 3, "devices": 2}, "--batch is 3 for 2 processes; expected a multiple of 2"),
        ({"batch": 4, "devices": 2, "nodes": 4}, "--batch is 4 for 8 processes"),
        ({"crop": 24}, "--crop is 24; expected a multiple of 16 for iqt-cfm-edge"),
        ({"crop": 20, "preset": "iqt-cfm"}, "--crop is 20; expected a multiple of 8 for iqt-cfm"),
        ({"crop": 0}, "--crop is 0"),
        ({"max_steps": 0}, "--max-steps is 0; expected at least 1"),
        ({"batch": 0}, "--batch is 0; expected at least 1"),
        ({"devices": 0}, "--devices is 0; expected at least 1"),
        ({"epoch_steps": 0}, "--epoch-steps is 0; expected at least 1"),
        ({"validate_every": 0}, "--validate-every is 0; expected at least 1"),
        ({"workers": -1}, "--workers is -1; expected at least 0"),
        ({"seed": -1}, "--seed is -1; expected at least 0"),
        ({"time_zero": 1.0}, "--time-zero is 1; expected at least 0 and below 1"),
        ({"air_weight": 0.0}, "--air-weight is 0; expected above 0 and at most 1"),
        ({"air_weight": 1.5}, "--air-weight is 1.5"),
        ({"time_weight": -0.5}, "--time-weight is -0.5; expected at least 0 and at most 4"),
        ({"time_weight": 5.0}, "--time-weight is 5;"),
        ({"time_power": -1.0}, "--time-power is -1; expected at least 0 and at most 100"),
        ({"voxel_size": 0.0}, "--voxel-size is 0; expected at least 0.2 and at most 10"),
        ({"learning_rate": -1.0}, "--learning-rate is -1; expected at least 1e-09 and at most 1"),
        ({"weight_decay": -1.0}, "--weight-decay is -1"),
        ({"scale_jitter": math.nan}, "--scale-jitter is nan; expected at least 0 and at most 0.9"),
        ({"source_std": 0.0}, "--source-std is 0; expected above 0 and at most 10"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    pairs: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as refused:
        train(tiny_settings(pairs, **changes), tmp_path / "run")
    assert str(refused.value).startswith(message)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_in_use_is_refused(settings: TrainingSettings, run: Path) -> None:
    before = weights_of(run)
    with pytest.raises(UsageError, match="already holds a run; go on with --resume"):
        train(settings, run)
    assert_equal(weights_of(run), before)


def test_nothing_to_resume_is_refused(settings: TrainingSettings, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=r"last\.ckpt not found; expected a run that has reached"):
        train(settings, tmp_path / "run", resume=True)


def test_a_run_does_not_go_on_with_other_pairs(
    settings: TrainingSettings, run: Path, pairs: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(pairs, tmp_path / "pairs")
    rows = read_pairs(pairs)
    write_pairs(tmp_path / "pairs", [row for row in rows if row.split != "test"])
    more = replace(settings, pairs=str(tmp_path / "pairs"), max_steps=settings.max_steps + 1)
    train(more, tmp_path / "run", resume=True)
    before = weights_of(tmp_path / "run")
    (row, *_) = (row for row in rows if row.split == "train")
    write_pairs(tmp_path / "pairs", [replace(r, seed=r.seed + 1) if r == row else r for r in rows])
    with pytest.raises(InputRefused, match=r"pairs holds other pairs than .*run learns from; expected the same pairs"):
        train(replace(more, max_steps=more.max_steps + 1), tmp_path / "run", resume=True)
    assert_equal(weights_of(tmp_path / "run"), before)


def test_people_that_the_starting_weights_learned_from_are_not_held_out(
    settings: TrainingSettings, run: Path, pairs: Path, tmp_path: Path
) -> None:
    shutil.copytree(pairs, tmp_path / "pairs")
    swapped = {"train": "validation", "validation": "train", "test": "test"}
    write_pairs(tmp_path / "pairs", [replace(row, split=swapped[row.split]) for row in read_pairs(pairs)])
    with pytest.raises(InputRefused, match=r"run learned from s1, .*which the split validation holds"):
        train(replace(settings, pairs=str(tmp_path / "pairs"), initial=str(run)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_does_not_reach_the_weights(
    settings: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([torch.tensor(1.0), torch.tensor(1.0)])
    original = flow_module.flow_matching_loss

    def run_away(network: Any, *args: Any, **options: Any) -> torch.Tensor:
        loss = original(network, *args, **options)
        return loss * next(losses, torch.tensor(math.nan))

    monkeypatch.setattr(flow_module, "flow_matching_loss", run_away)
    with pytest.raises(InputRefused, match="the loss is nan after 2 steps; expected a finite one: lower the rate"):
        train(settings, tmp_path / "run")
    assert all(np.isfinite(array).all() for array in weights_of(tmp_path / "run").values())


def test_a_folder_without_training_pairs_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_pairs(tmp_path / "pairs", (("s1", "validation", "S"),))
    with pytest.raises(InputRefused, match="no pair has the split train"):
        train(tiny_settings(folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_configuration_from_before_a_setting_was_there_is_read(settings: TrainingSettings, tmp_path: Path) -> None:
    settings.save(tmp_path)
    path = tmp_path / "config.json"
    document = json.loads(path.read_text())
    for later in ("source_std", "time_zero", "air_weight", "time_weight"):
        document.pop(later)
    path.write_text(json.dumps(document))
    assert TrainingSettings.load(path) == settings


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pairs": "x", "unknown": 1}', '{"pairs": 3}'])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputRefused, match=r"config\.json"):
        TrainingSettings.load(path)
    with pytest.raises(InputRefused):
        TrainingSettings.load(tmp_path / "missing.json")


def test_ctrl_c_leaves_the_last_checkpoint_and_the_interrupt(
    settings: TrainingSettings, run: Path, tmp_path: Path
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with stopping(3, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is handler, "the next Ctrl-C works"
    assert checkpoint_of(tmp_path / "run")["global_step"] == 2
    train(settings, tmp_path / "run", resume=True)
    assert_equal(weights_of(tmp_path / "run"), weights_of(run))


def test_a_checkpoint_is_whole_or_the_one_before(
    settings: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, written = torch.save, []

    def fill_the_disk(checkpoint: Any, path: Path) -> None:
        original(checkpoint, path)
        written.append(path)
        if len(written) == 2:
            path.write_bytes(path.read_bytes()[:1000])
            raise CrashError

    monkeypatch.setattr(callbacks_module.torch, "save", fill_the_disk)
    with pytest.raises(CrashError):
        train(settings, tmp_path / "run")
    assert checkpoint_of(tmp_path / "run")["global_step"] == 2
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_terminated_run_goes_on_from_its_last_checkpoint(pairs: Path, script: Path, tmp_path: Path) -> None:
    run, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    config = save(tiny_settings(pairs, max_steps=10_000, epoch_steps=1, validate_every=10_000), tmp_path / "config")
    process = start(script, config, run)
    try:
        deadline = time.monotonic() + 240
        while not last.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert last.exists(), "the run has reached its first checkpoint"
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        output = finish(process, timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + signal.SIGTERM, output
    steps = checkpoint_of(run)["global_step"]
    assert steps >= 1
    settings = tiny_settings(pairs, max_steps=steps + 2, epoch_steps=1, validate_every=10_000)
    with watching() as seen:
        train(settings, run, resume=True)
    assert [step for step, _ in seen] == [steps, steps + 1]


def test_two_processes_train_what_one_trains(pairs: Path, script: Path, tmp_path: Path) -> None:
    changes = {"batch": 4, "max_steps": 3, "epoch_steps": 3, "crop": 16, "validation_slices": 1}
    begun = build_network_weights(tiny_settings(pairs, **changes))
    train(tiny_settings(pairs, **changes), tmp_path / "one")
    config = save(tiny_settings(pairs, devices=2, **changes), tmp_path / "config")
    process = start(script, config, tmp_path / "two")
    output = finish(process, timeout=400)
    assert process.returncode == 0, output
    assert output == "", "the terminal is told nothing but progress, and nothing where it is none"
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    moved, apart = (
        np.sqrt(sum(float(np.square(two[name] - other[name]).sum()) for name in two)) for other in (begun, one)
    )
    # Both add the same four samples' gradients, in another order. Adam divides each gradient by its own size, so where
    # it is nothing but rounding (a key's bias) a weight may go either way; all weights together hardly notice.
    assert moved > 0
    assert apart < 0.02 * moved
    assert len(list((tmp_path / "two").glob("logs/csv/version_*"))) == 1, "the first process alone writes"


def build_network_weights(settings: TrainingSettings) -> Weights:
    """The fresh weights of a run."""
    import lightning.pytorch as pl

    pl.seed_everything(settings.seed, verbose=False)
    return {name: value.numpy().copy() for name, value in FlowModule(settings).network.state_dict().items()}


def test_the_bar_counts_steps_of_all_steps(
    settings: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    train(settings, tmp_path / "run")
    drawn = capfd.readouterr().err
    assert "4/4" in drawn
    assert "loss" in drawn
    assert "psnr" in drawn
    assert "Epoch" not in drawn


def test_the_bar_is_taken_down_after_an_error(
    settings: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[StepBar] = []
    original = StepBar.__init__

    def remember(self: StepBar, steps: int) -> None:
        original(self, steps)
        bars.append(self)

    monkeypatch.setattr(StepBar, "__init__", remember)
    with stopping(1, CrashError()), pytest.raises(CrashError):
        train(settings, tmp_path / "run")
    assert [bar.bar for bar in bars] == [None]
