from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.tissue import tissue_means
from lfmri_trainer.simulation.draws import PairParameters, draw_pair
from lfmri_trainer.simulation.scanner import simulate
from lfmri_trainer.subjects import find_subjects
from lfmri_trainer.synthesis.folder import read_labels, synthesise_folder, synthesise_subject
from lfmri_trainer.synthesis.tissues import CONTRAST, TISSUES
from lfmri_trainer.synthesis.volumes import (
    WHITE,
    Synthesised,
    deform,
    draw_intensities,
    synthesise,
    tissue_maps,
)
from lfmri_trainer.tissue import load_anatomy

from .onion import SHELLS, VENTRICLE, distance, onion


def save(path: Path, labels: NDArray[np.generic], *, affine: NDArray[np.float64], codes: str = "RAS") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(labels, affine)
    start, end = (nib.orientations.axcodes2ornt(axes) for axes in ("RAS", codes))
    nib.save(image.as_reoriented(nib.orientations.ornt_transform(start, end)), path)
    return path


@pytest.fixture(scope="module")
def subject() -> Synthesised:
    return synthesise(onion(), rng=np.random.default_rng(1))


def test_every_label_belongs_to_one_tissue() -> None:
    labels = [label for tissue in TISSUES.values() for label in tissue.labels]
    assert len(labels) == len(set(labels))
    assert all(low <= high for tissue in TISSUES.values() for low, high in [tissue.level])


def test_each_tissue_has_the_mean_and_the_spread_of_its_range() -> None:
    labels = onion()
    image = draw_intensities(labels, rng=np.random.default_rng(2))
    for tissue in TISSUES.values():
        values = image[np.isin(labels, tissue.labels)].astype(np.float64)
        if not values.size or 0 in tissue.labels:
            continue
        factors = CONTRAST if tissue.kind in ("gm", "wm") else (1, 1)
        reach = [1 - factor * (1 - level) for factor in factors for level in tissue.level]
        if tissue.kind in (None, "csf"):
            reach = list(tissue.level)
        assert 0.9 * min(reach) < values.mean() < 1.1 * max(reach)
        assert 0.5 < values.std() / values.mean() / tissue.texture < 1.3


def test_the_texture_is_smooth() -> None:
    """Neighbours in white matter are alike: white noise would have a correlation of 0."""
    labels = np.full((40, 40, 40), 2, dtype=np.int16)
    values = draw_intensities(labels, rng=np.random.default_rng(3)).astype(np.float64)
    assert np.corrcoef(values[1:].ravel(), values[:-1].ravel())[0, 1] > 0.5


def test_the_class_means_are_found_again(subject: Synthesised) -> None:
    for maps in (subject.gm, subject.wm):
        assert np.count_nonzero(maps > 0.95) > 500
    gm, wm = tissue_means(subject.image, subject.mask)
    assert wm == pytest.approx(WHITE, rel=0.05)
    assert gm == pytest.approx(float(subject.image[subject.gm > 0.95].mean()), rel=0.06)


def test_the_maps_sum_to_one_in_the_mask(subject: Synthesised) -> None:
    total = subject.gm + subject.wm + subject.csf
    np.testing.assert_allclose(total[subject.mask], 1, atol=1e-6)
    assert total[~subject.mask].max() == 0
    assert min(part.min() for part in (subject.gm, subject.wm, subject.csf)) >= 0


def test_a_map_is_its_labels_share_of_the_blurred_voxel() -> None:
    """Across a flat border the share is the normal distribution's: 0.5 between the voxels, 0.84 one deviation on."""
    labels = np.full((8, 8, 40), 2, dtype=np.int16)
    labels[:, :, 20:] = 3
    mask, maps = tissue_maps(labels, width=2.0, level=0.3)
    assert mask.all()
    shares = maps["gm"][4, 4, 18:22]
    assert (shares[1] + shares[2]) / 2 == pytest.approx(0.5, abs=1e-6)
    assert shares[3] == pytest.approx(0.5 + 0.5 * 0.5467, abs=0.01)  # 1.5 voxels beyond the border: erf(0.75 / sqrt 2)


def test_a_generous_mask_holds_a_tight_one_and_both_the_brain() -> None:
    labels = onion()
    brain = np.isin(labels, (2, 3))
    tight, generous = (tissue_maps(labels, width=0.5, level=level)[0] for level in (0.45, 0.15))
    assert (tight <= generous).all()
    assert tight.sum() < generous.sum()
    assert (tight & brain).sum() > 0.99 * brain.sum()
    assert not generous[np.isin(labels, (0, 507, 511, 515))].any()


def test_the_head_is_kept_and_the_air_is_dark(subject: Synthesised) -> None:
    skin = (distance() > 20) & (distance() < 21)
    assert subject.image[skin].mean() > 0.2 * WHITE
    assert subject.image[distance() > 27].mean() < 0.03 * WHITE
    assert subject.image.min() >= 0


def test_deforming_moves_borders_and_invents_no_label() -> None:
    labels = onion()
    moved = deform(labels, deviation=2.0, rng=np.random.default_rng(4))
    assert set(np.unique(moved)) <= set(np.unique(labels))
    assert 0.02 < (moved != labels).mean() < 0.3
    assert np.array_equal(deform(labels, deviation=0.0, rng=np.random.default_rng(4)), labels)


@pytest.fixture
def affine() -> NDArray[np.float64]:
    affine = np.diag([1.0, 1.0, 1.2, 1.0])
    affine[:3, 3] = (-20.0, 7.0, 3.5)
    return affine


@pytest.mark.parametrize("codes", ["RAS", "LIA"])
def test_reading_crops_and_turns_but_does_not_move(tmp_path: Path, affine: NDArray[np.float64], codes: str) -> None:
    padded = np.pad(onion(), [(9, 0), (0, 12), (4, 4)])
    labels, found = read_labels(save(tmp_path / "a.nii.gz", padded, affine=affine, codes=codes))
    assert labels.size < padded.size
    np.testing.assert_allclose(found[:3, :3], affine[:3, :3], atol=1e-6)
    for label in (*SHELLS, VENTRICLE):
        here, there = (np.argwhere(one == label).astype(float) for one in (labels, padded))
        np.testing.assert_allclose(
            here @ found[:3, :3] + found[:3, 3], there @ affine[:3, :3] + affine[:3, 3], atol=1e-4
        )


def parameters() -> PairParameters:
    size = (1.0, 1.0, 1.0)
    names = {"preset": "siqt-k4", "subject": "a", "split": "train", "thick_axis": "S", "fixed": "GM"}
    return draw_pair(**names, voxel_sizes=size, index=0, seed=0)


def test_a_folder_of_maps_becomes_subjects_that_simulate_takes(tmp_path: Path, affine: NDArray[np.float64]) -> None:
    path = save(tmp_path / "maps" / "a.nii.gz", onion().astype(np.float32), affine=affine, codes="LIA")
    save(tmp_path / "maps" / "b.nii", onion(), affine=np.eye(4))
    calls: list[tuple[int, int]] = []
    names = synthesise_folder(tmp_path / "maps", tmp_path / "out", workers=2, progress=lambda *call: calls.append(call))
    assert names == ["a", "b"]
    assert calls == [(0, 2), (1, 2), (2, 2)]
    first, second = find_subjects(tmp_path / "out")
    assert (first.name, second.name) == ("a", "b")
    anatomy = load_anatomy(first)
    assert anatomy.maps_source == "given"
    assert anatomy.image_head is not None
    np.testing.assert_allclose(anatomy.affine, read_labels(path)[1], atol=1e-5)
    assert simulate(anatomy, parameters()).data.shape[2] == -(-anatomy.mask.shape[2] // 4)
    # What is there already is not made again.
    written = (tmp_path / "out" / "a" / "T1w.nii.gz").stat().st_mtime_ns
    assert synthesise_folder(tmp_path / "maps", tmp_path / "out") == ["a", "b"]
    with pytest.raises(InputRefused, match=r"a/synthesis\.json was drawn with the seed 0; expected 9"):
        synthesise_folder(tmp_path / "maps", tmp_path / "out", seed=9)
    save(tmp_path / "maps" / "b.nii", onion(), affine=np.diag([2.0, 1.0, 1.0, 1.0]))
    with pytest.raises(InputRefused, match=r"b/synthesis\.json was made from other files"):
        synthesise_folder(tmp_path / "maps", tmp_path / "out")
    for name in names:  # made before there was a record
        (tmp_path / "out" / name / "synthesis.json").unlink()
    assert synthesise_folder(tmp_path / "maps", tmp_path / "out", seed=9) == ["a", "b"]
    assert (tmp_path / "out" / "a" / "T1w.nii.gz").stat().st_mtime_ns == written


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", onion(), affine=np.eye(4))
    for out, seed in (("one", 1), ("again", 1), ("other", 2)):
        synthesise_subject(path, tmp_path / out, seed=seed)
    one, again, other = (
        {path.name: path.read_bytes() for path in sorted((tmp_path / out).iterdir())}
        for out in ("one", "again", "other")
    )
    assert one == again
    assert len(one) == 6
    assert all(one[name] != other[name] for name in one)


def test_a_folder_without_maps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="no label map found"):
        synthesise_folder(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("label", "message"), [(2.5, r"unknown labels 2\.5"), (99, "unknown labels 99"), (0, "no label")]
)
def test_maps_that_cannot_be_used_are_refused(tmp_path: Path, label: float, message: str) -> None:
    labels = np.full((6, 6, 6), label, dtype=np.float32)
    with pytest.raises(InputRefused, match=message):
        read_labels(save(tmp_path / "a.nii.gz", labels, affine=np.eye(4)))


def test_a_truncated_map_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", onion(), affine=np.eye(4))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputRefused, match=r"a\.nii\.gz: not readable"):
        read_labels(path)
