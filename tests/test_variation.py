"""Varied copies of subjects, against closed forms and SciPy."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.files import sha256_file
from lfmri_trainer.simulation.simulate import SimulationSettings, simulate_folder
from lfmri_trainer.subjects import find_subjects, person_of
from lfmri_trainer.tissue import load_anatomy
from lfmri_trainer.variation import (
    AIR,
    BRIGHT,
    CONTROL_POINTS,
    DISPLACEMENT,
    FIELD_TERMS,
    RECORD,
    Variation,
    draw_variation,
    vary,
    vary_folder,
)

from .phantom import INTENSITIES, block, phantom, save_two

STILL = Variation(
    mirrored=False,
    displacement=np.zeros((CONTROL_POINTS,) * 3 + (3,)),
    field=(0.0,) * FIELD_TERMS,
    gamma=1.0,
    air=(0,) * 6,
)
#: The brain's 99.9th percentile is its white matter, without texture.
BRIGHTEST = INTENSITIES["wm"]


def test_a_copy_that_changes_nothing_is_its_original() -> None:
    subject = phantom()
    copy = vary(subject, STILL)
    assert np.array_equal(copy["T1w_brain"], np.rint(subject.image_brain / BRIGHTEST * BRIGHT))
    assert np.array_equal(copy["T1w"], np.rint(subject.image_head / BRIGHTEST * BRIGHT))
    assert np.array_equal(copy["brain_mask"], subject.mask)
    for name in ("GM", "WM", "CSF"):
        assert np.array_equal(copy[name], getattr(subject, name.lower()))
    assert (copy["T1w"].dtype, copy["brain_mask"].dtype, copy["GM"].dtype) == (np.int16, np.uint8, np.float32)


def test_mirror_and_air_are_numpys_flip_and_pad() -> None:
    subject = phantom(texture=0.2)
    plain, copy = vary(subject, STILL), vary(subject, replace(STILL, mirrored=True, air=(1, 2, 3, 0, 5, 6)))
    for name, volume in plain.items():
        assert np.array_equal(copy[name], np.pad(np.flip(volume, 0), ((1, 2), (3, 0), (5, 6)))), name


def test_contrast_is_a_power_of_the_share_and_leaves_the_maps() -> None:
    subject = phantom()
    plain, copy = vary(subject, STILL), vary(subject, replace(STILL, gamma=1.25))
    assert np.abs(copy["T1w"] - (plain["T1w"] / BRIGHT) ** 1.25 * BRIGHT).max() <= 1
    assert all(np.array_equal(copy[name], plain[name]) for name in ("GM", "WM", "CSF", "brain_mask"))


def test_the_field_is_the_exponential_of_its_polynomial_and_leaves_the_maps() -> None:
    subject = phantom()
    # TorchIO counts the powers of the last axis first: 1, z, z^2, z^3, y, ...
    copy = vary(subject, replace(STILL, field=(0.0, 0.1, *(0.0,) * (FIELD_TERMS - 2))))
    plain = vary(subject, STILL)
    z = (np.arange(34) - 16.5) / 16.5
    assert np.abs(copy["T1w"] - plain["T1w"] * np.exp(0.1 * z)).max() <= 1
    assert np.array_equal(copy["WM"], plain["WM"])


def test_points_that_all_move_alike_shift_everything_as_a_spline_of_scipy_does() -> None:
    subject = phantom(texture=0.2)
    displacement = STILL.displacement.copy()
    displacement[..., 2] = 2.25
    plain, copy = vary(subject, STILL), vary(subject, replace(STILL, displacement=displacement))
    inside = (slice(4, -4),) * 3
    for name, order, near in (("T1w", 3, 4), ("WM", 1, 1e-3), ("GM", 1, 1e-3)):
        moved = ndimage.shift(plain[name].astype(float), (0, 0, -2.25), order=order).clip(0)
        assert np.abs(copy[name][inside] - moved[inside]).max() < near, name


def test_bent_maps_stay_on_the_bent_image() -> None:
    subject = phantom()
    bent = draw_variation(np.random.default_rng(1)).displacement
    copy = vary(subject, replace(STILL, displacement=bent))
    assert (copy["WM"] != subject.wm).mean() > 0.02
    for tissue, name in (("wm", "WM"), ("gm", "GM"), ("csf", "CSF")):
        pure = ndimage.binary_erosion(copy[name] > 0.99)
        assert pure.sum() > 0.3 * block(tissue).sum()
        assert np.median(copy["T1w"][pure]) == pytest.approx(INTENSITIES[tissue] / BRIGHTEST * BRIGHT, rel=0.01)
    assert not copy["T1w_brain"][copy["brain_mask"] == 0].any()
    total = copy["GM"] + copy["WM"] + copy["CSF"]
    assert total[ndimage.binary_erosion(copy["brain_mask"])].min() > 0.9


def test_draws_stay_in_their_ranges_and_use_them() -> None:
    drawn = [draw_variation(np.random.default_rng(seed)) for seed in range(60)]
    assert 15 < sum(one.mirrored for one in drawn) < 45
    assert 15 < sum(any(one.air) for one in drawn) < 45
    assert max(max(one.air) for one in drawn) in range(AIR - 2, AIR + 1)
    farthest = [np.abs(one.displacement).max() for one in drawn]
    assert max(farthest) <= DISPLACEMENT < 1.2 * min(farthest)
    assert all(not one.displacement[edge].any() for one in drawn for edge in (0, 1, -1, -2))
    gammas = np.array([one.gamma for one in drawn])
    assert gammas.min() < 0.9 < 1.1 < gammas.max()


# A folder


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_two(tmp_path_factory.mktemp("subjects"))


@pytest.fixture(scope="module")
def copies(subjects: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("copies")
    seen: list[tuple[int, int]] = []
    names = vary_folder(subjects, out, copies=2, seed=4, workers=2, progress=lambda *counts: seen.append(counts))
    assert names == ["anna_copy-1", "anna_copy-2", "ben_copy-1", "ben_copy-2"]
    assert seen == [(number, 4) for number in range(5)]
    return out


def test_copies_are_subjects_with_maps_on_the_originals_grid(subjects: Path, copies: Path) -> None:
    found = find_subjects(copies)
    assert [subject.name for subject in found] == ["anna_copy-1", "anna_copy-2", "ben_copy-1", "ben_copy-2"]
    for subject in found:
        anatomy = load_anatomy(subject)
        assert anatomy.maps_source == "given"
        assert anatomy.image_head is not None
        record = json.loads((copies / subject.name / RECORD).read_text())
        assert record["subject"] == person_of(subject.name)
        start = np.linalg.solve(phantom().affine, anatomy.affine @ (*record["air"][::2], 1))
        assert np.allclose(start, (0, 0, 0, 1))


@pytest.mark.usefixtures("inline")
def test_no_two_copies_are_alike_and_a_second_run_makes_only_what_is_missing(
    subjects: Path, copies: Path, tmp_path: Path
) -> None:
    images = {path.parent.name: path.read_bytes() for path in copies.glob("*/T1w_brain.nii.gz")}
    assert len(set(images.values())) == 4
    vary_folder(subjects, tmp_path, copies=1, seed=4)
    kept = (tmp_path / "anna_copy-1" / "T1w.nii.gz").stat().st_mtime_ns
    with pytest.raises(InputRefused, match=r"anna_copy-1/variation\.json was drawn with the seed 4; expected 5"):
        vary_folder(subjects, tmp_path, copies=1, seed=5)
    record = tmp_path / "ben_copy-1" / RECORD
    document = json.loads(record.read_text())
    assert document["sources"]["mask"] in [sha256_file(path) for path in (subjects / "ben").iterdir()]
    document["sources"]["mask"] = "0" * 64
    record.write_text(json.dumps(document))
    with pytest.raises(InputRefused, match=r"ben_copy-1/variation\.json was made from other files"):
        vary_folder(subjects, tmp_path, copies=1, seed=4)
    record.unlink()
    (tmp_path / "ben_copy-1" / "T1w_brain.nii.gz").write_bytes(b"cut short")
    vary_folder(subjects, tmp_path, copies=1, seed=4)
    assert (tmp_path / "anna_copy-1" / "T1w.nii.gz").stat().st_mtime_ns == kept
    assert (tmp_path / "ben_copy-1" / "T1w_brain.nii.gz").read_bytes() == images["ben_copy-1"]


@pytest.mark.usefixtures("inline")
def test_half_a_copy_is_no_subject(
    subjects: Path, copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced: list[Path] = []
    original = Path.replace

    # Six volumes are written, each by a rename of its own, then moved to their places: maps, mask, images.
    for allowed in (1, 5, 6, 10):

        def interrupt(path: Path, target: Path, allowed: int = allowed) -> Path:
            if len(replaced) == allowed:
                raise KeyboardInterrupt
            replaced.append(path)
            return original(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", interrupt)
            with pytest.raises(KeyboardInterrupt):
                vary_folder(subjects, tmp_path, seed=4)
        assert len(replaced) == allowed
        replaced.clear()
        with pytest.raises(InputRefused, match="no subject found"):
            find_subjects(tmp_path)
    vary_folder(subjects, tmp_path, seed=4)
    for name in ("anna_copy-1", "ben_copy-1"):
        made, expected = ({p.name: p.read_bytes() for p in (out / name).iterdir()} for out in (tmp_path, copies))
        assert made == expected


@pytest.mark.usefixtures("inline")
def test_a_copy_is_in_its_originals_split(subjects: Path, copies: Path, tmp_path: Path) -> None:
    settings = SimulationSettings(preset="siqt-k4", validation_subjects=("anna",))
    split = {pair.subject: pair.split for pair in simulate_folder(copies, tmp_path, settings)}
    assert split == {f"{n}_copy-{k}": "validation" if n == "anna" else "train" for n in ("anna", "ben") for k in (1, 2)}
    with pytest.raises(InputRefused, match="already holds ben in the split train, not validation"):
        simulate_folder(subjects, tmp_path, replace(settings, validation_subjects=("ben",)))
    later = simulate_folder(subjects, tmp_path, replace(settings, validation_subjects=(), validation=0.0))
    assert {pair.subject: pair.split for pair in later} == {"anna": "validation", "ben": "train"}
