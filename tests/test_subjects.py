from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lfmri_runtime.errors import InputRefused
from lfmri_trainer.subjects import Subject, TissuePaths, find_subjects, open_volume, person_of
from lfmri_trainer.synthesis.folder import synthesise_folder


def write(path: Path, *, size: int = 4, shift: float = 0.0, flipped: bool = False) -> Path:
    """Write a tiny volume of (size, size, size + 1) voxels; `flipped` stores the same grid as LIA."""
    affine = np.eye(4)
    affine[:3, 3] = shift
    image = nib.Nifti1Image(np.zeros((size, size, size + 1), np.float32), affine)
    if flipped:
        image = image.as_reoriented([[0, -1], [2, 1], [1, -1]])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.MGHImage(image.get_fdata(dtype=np.float32), image.affine) if path.suffix == ".mgz" else image, path)
    return path


def only(folder: Path) -> Subject:
    (subject,) = find_subjects(folder)
    return subject


def taken(folder: Path, names: str) -> tuple[str, str, str]:
    """Write volumes of these names as the subject anna; what is taken as brain, head and mask, by stem, "" for none."""
    for name in names.split():
        write(folder / "anna" / f"{name}.nii.gz")
    subject = only(folder)
    paths = (subject.brain, subject.head, subject.mask)
    brain, head, mask = (path.name.removesuffix(".nii.gz") if path else "" for path in paths)
    return brain, head, mask


@pytest.mark.parametrize("inner", ["T1w", "."])
def test_hcp_takes_the_three_files_and_the_id(tmp_path: Path, inner: str) -> None:
    for name in ("200", "100"):
        place = tmp_path / name / inner
        for stem in ("T1w_acpc_dc_restore_brain", "T1w_acpc_dc_restore", "brainmask_fs", "wmparc", "T1wDividedByT2w"):
            write(place / f"{stem}.nii.gz")
    first, second = find_subjects(tmp_path)
    place = tmp_path / "100" / inner
    assert (first.name, second.name) == ("100", "200")
    assert first.brain == place / "T1w_acpc_dc_restore_brain.nii.gz"
    assert first.head == place / "T1w_acpc_dc_restore.nii.gz"
    assert first.mask == place / "brainmask_fs.nii.gz"
    assert first.tissue is None


def test_an_hcp_subject_itself_is_one_subject_and_not_its_folders(tmp_path: Path) -> None:
    write(tmp_path / "100" / "T1w" / "T1w_acpc_dc_restore_brain.nii.gz")
    write(tmp_path / "100" / "MNINonLinear" / "T1w_restore_brain.nii.gz")
    subject = only(tmp_path / "100")
    assert subject.name == "100"
    assert subject.brain == tmp_path / "100" / "T1w" / "T1w_acpc_dc_restore_brain.nii.gz"


def test_hcp_takes_tissue_maps_beside_it(tmp_path: Path) -> None:
    place = tmp_path / "100" / "T1w"
    write(place / "T1w_acpc_dc_restore_brain.nii.gz")
    gm, wm = write(place / "GM.nii.gz"), write(place / "WM.nii.gz")
    assert only(tmp_path).tissue == TissuePaths(gm, wm, None)


def test_bids_takes_masks_and_maps_of_its_own_subject_and_space(tmp_path: Path) -> None:
    head = write(tmp_path / "sub-1" / "anat" / "sub-1_T1w.nii.gz")
    write(tmp_path / "sub-10" / "anat" / "sub-10_T1w.nii.gz")
    made = tmp_path / "derivatives" / "fmriprep"
    mask = write(made / "sub-1" / "anat" / "sub-1_desc-brain_mask.nii.gz")
    maps = {
        label: write(made / "sub-1" / "anat" / f"sub-1_label-{label}_probseg.nii.gz") for label in ("GM", "WM", "CSF")
    }
    write(made / "sub-1" / "anat" / "sub-1_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz")
    write(made / "sub-1" / "anat" / "sub-1_space-MNI152NLin2009cAsym_label-GM_probseg.nii.gz")
    write(made / "sub-1" / "anat" / "sub-1_dseg.nii.gz")
    write(made / "sub-10" / "anat" / "sub-10_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz")
    write(made / "sub-100" / "anat" / "sub-100_desc-brain_mask.nii.gz")
    one, ten = find_subjects(tmp_path)
    assert one == Subject("sub-1", None, head, mask, TissuePaths(maps["GM"], maps["WM"], maps["CSF"]))
    assert (ten.name, ten.mask, ten.tissue) == ("sub-10", None, None)


def test_bids_sessions_are_subjects_with_their_own_masks(tmp_path: Path) -> None:
    for session in ("ses-a", "ses-b"):
        write(tmp_path / "sub-1" / session / "anat" / f"sub-1_{session}_T1w.nii.gz")
        write(tmp_path / "derivatives" / "x" / "sub-1" / session / "anat" / f"sub-1_{session}_desc-brain_mask.nii.gz")
    found = find_subjects(tmp_path)
    assert [subject.name for subject in found] == ["sub-1_ses-a", "sub-1_ses-b"]
    assert [subject.mask.name for subject in found if subject.mask] == [
        "sub-1_ses-a_desc-brain_mask.nii.gz",
        "sub-1_ses-b_desc-brain_mask.nii.gz",
    ]


@pytest.mark.parametrize("derived", ["preproc", "enhanced"])
def test_bids_prefers_what_fmriprep_corrected_to_the_raw_scan_and_the_raw_scan_to_others(
    tmp_path: Path, derived: str
) -> None:
    raw = write(tmp_path / "sub-1" / "anat" / "sub-1_T1w.nii.gz")
    made = tmp_path / "derivatives" / "x" / "sub-1" / "anat"
    write(made / "sub-1_desc-brain_mask.nii.gz")
    write(made / "sub-1_desc-enhanced_T1w.nii.gz")
    other = write(made / f"sub-1_desc-{derived}_T1w.nii.gz")
    assert only(tmp_path).head == (other if derived == "preproc" else raw)


def test_bids_takes_the_raw_scan_where_the_corrected_one_is_not_on_the_masks_grid(tmp_path: Path) -> None:
    raw = write(tmp_path / "sub-1" / "anat" / "sub-1_T1w.nii.gz")
    write(tmp_path / "sub-1" / "anat" / "sub-1_desc-brain_mask.nii.gz")
    write(tmp_path / "derivatives" / "x" / "sub-1" / "anat" / "sub-1_desc-preproc_T1w.nii.gz", size=5)
    assert only(tmp_path).head == raw


def test_bids_takes_the_first_of_two_runs_and_does_not_need_the_second(tmp_path: Path) -> None:
    first = write(tmp_path / "sub-1" / "anat" / "sub-1_run-1_T1w.nii.gz")
    write(tmp_path / "sub-1" / "anat" / "sub-1_desc-brain_mask.nii.gz")
    (tmp_path / "sub-1" / "anat" / "sub-1_run-2_T1w.nii.gz").write_bytes(b"not fetched")
    assert only(tmp_path).head == first


def test_a_plain_folder_sorts_files_by_name_and_leaves_labels_out(tmp_path: Path) -> None:
    folder = tmp_path / "anna"
    brain, head = write(folder / "my_T1w_brain.nii.gz"), write(folder / "orig_T1w.mgz")
    mask = write(folder / "brain_mask_T1w.nii")
    gm, wm = write(folder / "mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz"), write(folder / "WM.nii.gz")
    for label in ("T1w_aseg", "T1w_brain_seg", "T1w-labels", "T1w_brain_pve_0", "T1w_brain_aparc+aseg"):
        write(folder / f"{label}.nii.gz")
    write(folder / "T2w.nii.gz")
    assert only(tmp_path) == Subject("anna", brain, head, mask, TissuePaths(gm, wm, None))


def test_a_tissue_word_inside_another_word_is_no_tissue(tmp_path: Path) -> None:
    brain = write(tmp_path / "anna" / "t1_brain_sigmoid_newman.nii.gz")
    assert only(tmp_path) == Subject("anna", brain, None, None, None)


@pytest.mark.parametrize(
    ("names", "head"),
    [
        ("subject1_FLAIR subject1_T1w", "subject1_T1w"),
        ("patient12_FLAIR patient12_T1", "patient12_T1"),
        ("T1map T1w", "T1w"),
        ("T1wDividedByT2w T1w_x", "T1w_x"),
        ("c1s01_T1w c2s01_T1w mwp1s01_T1w s01_T1w", "s01_T1w"),
        ("c1007_T1w c1007_T2w", "c1007_T1w"),
        ("Sag3DT1w", "Sag3DT1w"),
    ],
)
def test_t1w_is_a_word_of_the_name(tmp_path: Path, names: str, head: str) -> None:
    assert taken(tmp_path, f"{names} brainmask") == ("", head, "brainmask")


@pytest.mark.parametrize("name", ["subject1_FLAIR", "patient12_T2w", "s01_T1map"])
def test_a_folder_of_other_contrasts_alone_is_no_subject(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputRefused, match="no subject found"):
        taken(tmp_path, f"{name} brainmask")


@pytest.mark.parametrize(
    "name", ["my_T1w_brain", "t1_brain_2", "T1w_Brain", "T1wbrain", "s01_T1w_brain2mm", "s01_T1w_BrainExtractionBrain"]
)
def test_a_name_with_brain_as_a_word_or_behind_t1w_is_stripped(tmp_path: Path, name: str) -> None:
    assert taken(tmp_path, name) == (name, "", "")


def test_a_study_of_brains_is_not_taken_for_stripped(tmp_path: Path) -> None:
    assert taken(tmp_path, "BrainStudy_07_T1w brainmask") == ("", "BrainStudy_07_T1w", "brainmask")


@pytest.mark.parametrize(
    ("names", "candidates"),
    [
        ("T1w_a T1w_b brainmask", ("T1w_a", "T1w_b", "head")),
        ("T1w_a_brain T1w_b_brain brainmask", ("T1w_a_brain", "T1w_b_brain", "brain")),
        ("T1w_a_brain T1w_b_brain", ("T1w_a_brain", "T1w_b_brain", "brain")),
        ("T1w T1w_n4 T1w_brain", ("T1w", "T1w_n4", "head")),
    ],
)
def test_files_that_cannot_be_told_apart_are_refused_by_name(
    tmp_path: Path, names: str, candidates: tuple[str, str, str]
) -> None:
    first, second, kind = candidates
    with pytest.raises(InputRefused, match=rf"{first}\.nii\.gz, {second}\.nii\.gz .* {kind}; expected one .*; move"):
        taken(tmp_path, names)


@pytest.mark.parametrize(
    "mask",
    [
        "mask",
        "mask_1mm",
        "mask_brain",
        "brainmask_fs",
        "sub-anna_desc-brain_mask",
        "s01_mask",
        "s01_T1wmask",
        "s01_T1w_brain_mask_v2",
        "s01_T1w_brain_1mm_mask",
        "s01_T1wbrainmask_v2",
        "s01_T1w_bet_mask",
        "s01_T1w_biascorr_bet_mask",
        "s01_T1w_BrainExtractionMask",
        "Anna-mask",
    ],
)
def test_a_mask_that_names_the_brain_or_nothing_else_is_the_brains(tmp_path: Path, mask: str) -> None:
    assert taken(tmp_path, f"s01_T1w {mask} a_lesion_mask") == ("", "s01_T1w", mask)


@pytest.mark.parametrize(
    "mask", ["lesion_mask", "s01_brain_lesion_mask", "BrainStudy_07_lesion_mask", "T1w_pydeface_mask", "T1w_masked"]
)
def test_another_mask_is_refused_beside_a_head_and_ignored_beside_a_brain(tmp_path: Path, mask: str) -> None:
    with pytest.raises(InputRefused, match=rf"{mask}\.nii\.gz: .*not the brain's .*brain\*mask.* beside T1w\.nii\.gz"):
        taken(tmp_path, f"T1w {mask}")
    assert taken(tmp_path, "T1w_brain") == ("T1w_brain", "T1w", "")


@pytest.mark.parametrize("head", ["s01_T1_defaced", "s01_T1w_defaced"])
def test_a_word_behind_t1w_does_not_say_whose_a_mask_is(tmp_path: Path, head: str) -> None:
    with pytest.raises(InputRefused, match=r"s01_defaced_mask\.nii\.gz: .*not the brain's"):
        taken(tmp_path, f"{head} s01_defaced_mask")


@pytest.mark.parametrize("hidden", [".ab12.tmp.T1w_brain", "._T1w_brain"])
def test_hidden_files_are_no_volumes(tmp_path: Path, hidden: str) -> None:
    assert taken(tmp_path, f"{hidden} T1w_brain") == ("T1w_brain", "", "")
    with pytest.raises(InputRefused, match="no label map found"):
        synthesise_folder(write(tmp_path / "labels" / f"{hidden}.nii.gz").parent, tmp_path / "out")


def test_hidden_files_are_no_derivatives(tmp_path: Path) -> None:
    write(tmp_path / "sub-1" / "anat" / "sub-1_T1w.nii.gz")
    made = tmp_path / "derivatives" / "x" / "sub-1" / "anat"
    write(made / "._sub-1_desc-brain_mask.nii.gz")
    mask = write(made / "sub-1_desc-brain_mask.nii.gz")
    assert only(tmp_path).mask == mask


def test_the_head_on_the_masks_grid_is_preferred(tmp_path: Path) -> None:
    write(tmp_path / "anna" / "T1w_head_a_large.nii.gz", size=6)
    write(tmp_path / "anna" / "T1w_head_b_shifted.nii.gz", shift=0.01)
    right = write(tmp_path / "anna" / "T1w_head_c.nii.gz", shift=0.0005, flipped=True)
    write(tmp_path / "anna" / "brainmask.nii.gz")
    assert only(tmp_path).head == right


def test_a_brain_mask_is_preferred_to_another_mask(tmp_path: Path) -> None:
    write(tmp_path / "anna" / "T1w.nii.gz")
    write(tmp_path / "anna" / "a_lesion_mask.nii.gz")
    write(tmp_path / "anna" / "T1w_mask.nii.gz")
    mask = write(tmp_path / "anna" / "brainmask.nii.gz")
    assert only(tmp_path).mask == mask


def test_the_folder_itself_may_be_a_subject(tmp_path: Path) -> None:
    write(tmp_path / "anna" / "T1w_brain.nii.gz")
    (tmp_path / "anna" / "notes").mkdir()
    assert only(tmp_path / "anna").name == "anna"


def test_a_stray_volume_above_does_not_hide_the_subjects(tmp_path: Path) -> None:
    write(tmp_path / "template_T1w_brain.nii.gz")
    write(tmp_path / "anna" / "T1w_brain.nii.gz")
    assert only(tmp_path).name == "anna"


@pytest.mark.parametrize("content", ["missing", "empty", "no T1w"])
def test_a_folder_without_subjects_is_refused_with_the_layouts(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "study"
    if content != "missing":
        folder.mkdir()
    if content == "no T1w":
        write(folder / "anna" / "T2w_brain.nii.gz")
        write(folder / "anna" / "T1w_aseg.nii.gz")
    with pytest.raises(InputRefused) as refused:
        find_subjects(folder)
    message = str(refused.value)
    assert str(folder) in message
    assert all(layout in message for layout in ("HCP", "BIDS", "plain"))
    assert "\n" not in message


def test_a_header_that_is_needed_and_broken_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "anna" / "T1w_a.nii.gz")
    (tmp_path / "anna" / "T1w_b.nii.gz").write_bytes(b"not gzip")
    write(tmp_path / "anna" / "brainmask.nii.gz", size=5)
    with pytest.raises(InputRefused, match=r"T1w_b\.nii\.gz"):
        find_subjects(tmp_path)


def test_open_volume_gives_the_ras_grid_of_another_orientation(tmp_path: Path) -> None:
    path = write(tmp_path / "lia.nii.gz", shift=-3.0, flipped=True)
    image, grid = open_volume(path)
    assert nib.aff2axcodes(image.affine) == ("L", "I", "A")
    assert grid.shape == (4, 4, 5)
    canonical = nib.as_closest_canonical(image)
    np.testing.assert_allclose(grid.affine, canonical.affine)
    assert grid.shape == canonical.shape


def test_open_volume_refuses_a_4d_volume(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, 3), np.float32), np.eye(4)), tmp_path / "four.nii.gz")
    with pytest.raises(InputRefused, match=r"four\.nii\.gz.*3-D"):
        open_volume(tmp_path / "four.nii.gz")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_open_volume_refuses_an_affine_that_is_not_finite(tmp_path: Path, value: float) -> None:
    path = write(tmp_path / "broken.nii")
    content = bytearray(path.read_bytes())
    content[280:284] = np.float32(value).tobytes()  # srow_x[0] of the NIfTI-1 header
    path.write_bytes(content)
    with pytest.raises(InputRefused, match=r"broken\.nii: NaN or infinity in the affine; .*repair"):
        open_volume(path)


@pytest.mark.parametrize(
    ("name", "person"),
    [
        ("HCA6002236_V1_MR", "HCA6002236"),
        ("HCA6002236_V2_MR", "HCA6002236"),
        ("HCA6002236_V2_MR_copy-1", "HCA6002236"),
        ("OAS1_0061_MR1", "OAS1_0061"),
        ("OAS2_0061_MR2", "OAS2_0061"),
        ("OAS30001_MR_d0129", "OAS30001"),
        ("sub-1_ses-2_copy-3", "sub-1"),
        ("hospital_MR001", "hospital_MR001"),
        ("volunteers_V01", "volunteers_V01"),
    ],
)
def test_visits_sessions_and_copies_are_one_person(name: str, person: str) -> None:
    assert person_of(name) == person
