"""Training samples: what a crop holds, and which sample comes when."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused
from lfmri_trainer.dataset import CountingSampler, CropDataset, SliceDataset
from lfmri_trainer.loaders import PairsData
from lfmri_trainer.simulation.pairs import low_path, read_pairs, read_volume, subject_path, write_volume
from lfmri_trainer.working import WorkingPair, working_pairs

from .training_fixtures import PAIRS, SIDE, parameters, tiny_settings, write_tiny_pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pairs(tmp_path_factory.mktemp("tiny") / "pairs")


def working_pair(condition: NDArray[Any], target: NDArray[Any] | None = None, *, thick_axis: str = "S") -> WorkingPair:
    target = condition if target is None else target
    return WorkingPair(parameters("s", "train", thick_axis), condition.astype(np.float16), target.astype(np.float16))


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(2).uniform(0.1, 1, shape).astype(np.float16).astype(np.float32)


def crops(*pairs: WorkingPair, **changes: Any) -> CropDataset:
    settings = {
        "crop": 16,
        "length": 64,
        "seed": 3,
        "source_std": 0.5,
        "scale_jitter": 0.1,
        "time_power": 0.0,
        "time_zero": 0.0,
    }
    return CropDataset(pairs, **{**settings, **changes})


def ramps(*, thick_axis: int) -> NDArray[np.float32]:
    """Grows by 1 with each voxel along the thick axis, by 1/32 and 1/64 along the others; exact in float16."""
    i, j, k = (np.arange(16, dtype=np.float32).reshape([-1 if a == axis else 1 for a in range(3)]) for axis in range(3))
    weights = [1 / 32, 1 / 64]
    weights.insert(thick_axis, 1)
    return 0.5 + (weights[0] * i + weights[1] * j + weights[2] * k)


def test_a_sample_is_a_function_of_seed_and_number() -> None:
    first, again, other = (crops(working_pair(noise(24, 20, 18)), seed=seed) for seed in (3, 3, 4))
    for number in (0, 1, 70):
        for name, tensor in first[number].items():
            assert torch.equal(tensor, again[number][name])
            assert not torch.equal(tensor, other[number][name])
            assert not torch.equal(tensor, first[number + 1][name])
    assert len(first) == 64


def test_a_sample_does_not_depend_on_what_was_drawn_before() -> None:
    one, two = (crops(working_pair(noise(24, 20, 18))) for _ in range(2))
    for number in (5, 2, 9):
        one[number]
    assert torch.equal(one[7]["x_0"], two[7]["x_0"])
    assert torch.equal(one[7]["y"], two[7]["y"])


def test_what_a_sample_holds() -> None:
    dataset = crops(working_pair(noise(24, 20, 18)), length=2000)
    sample = dataset[0]
    assert {name: tuple(tensor.shape) for name, tensor in sample.items()} == {
        "x_0": (1, 16, 16),
        "x_1": (1, 16, 16),
        "y": (1, 16, 16),
        "t": (),
    }
    assert {tensor.dtype for tensor in sample.values()} == {torch.float32}
    x_0 = torch.stack([dataset[number]["x_0"] for number in range(40)])  # about 10,000 draws: six standard errors
    assert abs(x_0.mean() / 0.5) < 0.06
    assert abs(x_0.std() / 0.5 - 1) < 0.05


def test_times_are_uniform_or_lean_to_the_noise() -> None:
    pair = working_pair(noise(16, 16, 16))
    for power, mean in ((0.0, 1 / 2), (2.0, 1 / 4)):
        dataset = crops(pair, time_power=power)
        t = torch.stack([dataset[number]["t"] for number in range(1000)])
        assert 0 <= t.min() < 0.01
        assert t.max() < 1
        assert t.mean() == pytest.approx(mean, abs=0.04)  # four standard errors
        started = crops(pair, time_power=power, time_zero=0.4)
        t = torch.stack([started[number]["t"] for number in range(1000)])
        assert (t == 0).float().mean() == pytest.approx(0.4, abs=0.06)
        assert t[t > 0].mean() == pytest.approx(mean, abs=0.05)


@pytest.mark.parametrize("thick_axis", ["R", "A", "S"])
def test_condition_and_target_show_the_same_place(thick_axis: str) -> None:
    volume = noise(24, 20, 18)
    dataset = crops(working_pair(volume, thick_axis=thick_axis), scale_jitter=0.1)
    factors = []
    for number in range(30):
        sample = dataset[number]
        ratio = sample["y"] / sample["x_1"]
        torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0, 0, 0])), atol=1e-5, rtol=0)
        factors.append(float(ratio.mean()))
    assert 0.9 <= min(factors) < 0.95
    assert 1.05 < max(factors) <= 1.1


def test_without_jitter_the_condition_is_untouched() -> None:
    dataset = crops(working_pair(noise(24, 20, 18)), scale_jitter=0.0)
    for number in range(5):
        assert torch.equal(dataset[number]["y"], dataset[number]["x_1"])


@pytest.mark.parametrize("thick_axis", ["R", "A", "S"])
def test_rows_run_along_the_thick_axis_and_both_images_flip_together(thick_axis: str) -> None:
    dataset = crops(working_pair(ramps(thick_axis="RAS".index(thick_axis)), thick_axis=thick_axis), scale_jitter=0.0)
    flips = set()
    columns = set()
    for number in range(60):
        x_1, y = dataset[number]["x_1"][0], dataset[number]["y"][0]
        assert torch.equal(x_1, y)
        down, across = x_1[1, 0] - x_1[0, 0], x_1[0, 1] - x_1[0, 0]
        assert abs(down) == 1, "one row is one voxel of the thick axis"
        columns.add(1 / float(abs(across)))
        flips.add((bool(down > 0), bool(across > 0)))
    assert len(flips) == 4, "all four flips occur"
    assert columns == {32, 64}, "both planes that contain the thick axis occur"


def test_crops_come_from_everywhere_and_stay_inside() -> None:
    volume = np.broadcast_to(np.arange(1, 25, dtype=np.float32), (24, 24, 24))  # counts the voxels of the thick axis
    dataset = crops(working_pair(volume, thick_axis="S"), scale_jitter=0.0)
    starts = {int(dataset[number]["x_1"].min()) for number in range(200)}
    assert starts == set(range(1, 10))


def test_a_slice_smaller_than_the_crop_is_padded_with_zeros() -> None:
    sample = crops(working_pair(noise(10, 10, 12)), crop=16, scale_jitter=0.0)[0]
    for name in ("x_1", "y"):
        inside = sample[name] > 0
        assert sample[name].shape == (1, 16, 16)
        assert inside.sum() == 10 * 12
    assert torch.equal(sample["x_1"] > 0, sample["y"] > 0)
    assert (sample["x_0"] != 0).all(), "noise fills the padding too"


def test_a_target_that_reaches_further_is_cut_to_the_condition() -> None:
    target = ramps(thick_axis=2)
    dataset = crops(working_pair(target[:, :, :13], target), crop=8, scale_jitter=0.0)
    for number in range(40):
        assert torch.equal(dataset[number]["x_1"], dataset[number]["y"])


def test_empty_slices_are_left_out() -> None:
    volume = np.zeros((30, 30, 30), dtype=np.float32)
    volume[10:14, 12:18, 5:25] = 1
    dataset = crops(working_pair(volume), crop=32, scale_jitter=0.0)
    assert all((dataset[number]["x_1"] > 0.05).float().mean() > 0.02 for number in range(50))
    with pytest.raises(InputRefused, match="no slice of 1 training pairs"):
        crops(working_pair(np.zeros((30, 30, 30), dtype=np.float32)))
    with pytest.raises(InputRefused, match="no slice of 1 validation pairs"):
        SliceDataset([working_pair(np.zeros((30, 30, 30)))], count=4, multiple=16, source_std=1.0, seed=6)


def test_two_processes_see_together_what_one_sees() -> None:
    alone = list(CountingSampler(steps_done=lambda: 0, steps=3, batch=4, rank=0, world=1))
    assert alone == list(range(12))
    ranks = [CountingSampler(steps_done=lambda: 0, steps=3, batch=2, rank=rank, world=2) for rank in range(2)]
    dealt = [np.array(list(sampler)).reshape(3, 2) for sampler in ranks]
    assert [len(sampler) for sampler in ranks] == [6, 6]
    assert np.concatenate(dealt, axis=1).ravel().tolist() == alone, "each step's batch is the same, in two halves"


def test_samples_are_numbered_on_through_the_epochs() -> None:
    steps = 0
    sampler = CountingSampler(steps_done=lambda: steps, steps=2, batch=3, rank=0, world=1)
    assert list(sampler) == [0, 1, 2, 3, 4, 5]
    steps = 2
    assert list(sampler) == [6, 7, 8, 9, 10, 11]
    steps = 5  # a run resumed from the end of a short epoch
    assert list(sampler) == [15, 16, 17, 18, 19, 20]


def test_validation_slices_are_whole_padded_and_the_same_every_time() -> None:
    volume = noise(20, 22, 27)
    first, again = (
        SliceDataset([working_pair(volume)], count=4, multiple=16, source_std=1.0, seed=6) for _ in range(2)
    )
    assert len(first) == 4, "as many as were asked for"
    assert not torch.equal(first[0]["x_1"], first[1]["x_1"]), "two places of one plane"
    for number, shape in enumerate([(27, 22), (27, 22), (27, 22), (27, 20)]):
        sample = first[number]
        assert all(tensor.shape == (1, 32, 32) for tensor in sample.values())
        inside = sample["x_1"][0] > 0
        assert (inside.any(dim=1).sum().item(), inside.any(dim=0).sum().item()) == shape
        assert inside[: shape[0], : shape[1]].all(), "zeros stand on the far side"
        for name, tensor in sample.items():
            assert torch.equal(tensor, again[number][name])
    assert not torch.equal(first[0]["x_0"], first[1]["x_0"])
    other = SliceDataset([working_pair(volume)], count=4, multiple=16, source_std=1.0, seed=7)
    narrow = SliceDataset([working_pair(volume)], count=4, multiple=16, source_std=0.25, seed=6)
    assert torch.equal(narrow[0]["x_0"], 0.25 * first[0]["x_0"])
    assert not torch.equal(first[0]["x_0"], other[0]["x_0"])
    assert torch.equal(first[0]["y"], other[0]["y"])


def test_validation_slices_come_from_the_middle_of_different_pairs() -> None:
    volumes = [ramps(thick_axis=2) + 20 * i for i in range(3)]
    dataset = SliceDataset([working_pair(volume) for volume in volumes], count=3, multiple=16, source_std=1.0, seed=6)
    levels = [dataset[i]["x_1"].min().item() // 20 for i in range(3)]
    assert levels == [0, 1, 2]
    index = (dataset[0]["x_1"].min().item() - 0.5) * 32  # the slices of the first axis, counted by their ramp
    assert 4 <= index <= 12


def test_arrays_are_made_again_when_what_they_were_made_from_was(tmp_path: Path) -> None:
    folder = write_tiny_pairs(tmp_path / "pairs")
    rows = [row for row in read_pairs(folder) if row.subject == "s1"]
    processing = PairsData(tiny_settings(folder)).processing
    (before,) = working_pairs(folder, rows, processing)
    y, x_1 = np.array(before.condition), np.array(before.target)
    data, affine = read_volume(low_path(folder, rows[0]))
    write_volume(low_path(folder, rows[0]), data[::-1].copy(), affine)
    (scan,) = working_pairs(folder, rows, processing)
    assert not np.array_equal(scan.condition, y)
    assert np.array_equal(scan.target, x_1)
    data, affine = read_volume(subject_path(folder, "s1", "brain"))
    write_volume(subject_path(folder, "s1", "brain"), data[::-1].copy(), affine)
    (both,) = working_pairs(folder, rows, processing)
    assert not np.array_equal(both.target, x_1)


def test_no_subject_of_the_other_splits_is_trained_on(pairs: Path) -> None:
    data = PairsData(tiny_settings(pairs))
    expected = {name: {subject for subject, split, _ in PAIRS if split == name} for name in ("train", "validation")}
    found = {
        name: {pair.parameters.subject for pair in chosen}
        for name, chosen in (("train", data.train_pairs), ("validation", data.validation_pairs))
    }
    assert found == expected
    assert not found["train"] & found["validation"]
    loaded = data.train_dataloader().dataset
    assert isinstance(loaded, CropDataset)
    assert len(loaded.stacks) == 2 * len(expected["train"]), "two planes of each training pair and nothing else"


def test_pairs_come_onto_the_working_grid_aligned(pairs: Path) -> None:
    for pair in PairsData(tiny_settings(pairs)).train_pairs:
        lengths = [SIDE] * 3
        lengths[pair.thick_axis] = SIDE - 3  # from the first thick slice's centre to the last one's
        assert pair.condition.shape == tuple(lengths)
        assert pair.target.shape == (SIDE, SIDE, SIDE)
        target = pair.target[tuple(slice(0, n) for n in lengths)].astype(np.float64)
        scores = [
            np.corrcoef(pair.condition.astype(np.float64).ravel(), np.roll(target, shift, pair.thick_axis).ravel())[
                0, 1
            ]
            for shift in (-2, -1, 0, 1, 2)
        ]
        assert int(np.argmax(scores)) == 2, "no shift along the thick axis fits better than none"
        assert scores[2] > 0.9
