import csv
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_trainer.simulation.draws import PairParameters
from lfmri_trainer.simulation.pairs import low_path, read_pairs, read_volume, subject_path, write_pairs
from lfmri_trainer.simulation.simulate import SimulationSettings, _splits, plan, simulate_folder
from lfmri_trainer.subjects import Subject
from lfmri_trainer.working import learn_processing

from .phantom import phantom, save_subject, save_two

SETTINGS = SimulationSettings(preset="siqt-k4", draws=2, validation=0.5, seed=3)
COLUMNS = (
    "pair,subject,split,preset,anatomy,thick_axis,fixed,"
    "spacing,thickness,snr_wm,snr_gm,distance,noise,in_plane,bias,seed"
)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(folder: Path) -> dict[str, tuple[int, int]]:
    """When each file was written, and which file it is: an atomic replacement gives another inode."""
    found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in found.items()}


def fake_subjects(folder: Path, names: Sequence[str]) -> list[Subject]:
    """Subjects of which only a header is ever read."""
    path = folder / "T1w_brain.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), path)
    return [Subject(name, path, None, None, None) for name in names]


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_two(tmp_path_factory.mktemp("subjects"))


@pytest.fixture(scope="module")
def finished(subjects: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[PairParameters]]:
    """A folder that a test may read, not change."""
    out = tmp_path_factory.mktemp("finished") / "new" / "pairs"
    return out, simulate_folder(subjects, out, SETTINGS)


@pytest.fixture
def folder(tmp_path: Path, finished: tuple[Path, list[PairParameters]]) -> Path:
    """A finished folder that a test may change."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


@pytest.fixture
def table(tmp_path: Path, finished: tuple[Path, list[PairParameters]]) -> Path:
    """A folder with a table alone."""
    write_pairs(tmp_path, finished[1])
    return tmp_path


# ---- what a run leaves


def test_a_run_leaves_a_table_a_scan_a_pair_and_the_subjects(finished: tuple[Path, list[PairParameters]]) -> None:
    out, pairs = finished
    names = [f"{subject}_siqt-k4_00{i}" for subject in ("anna", "ben") for i in range(2)]
    expected = {"pairs.csv", *(f"pairs/{name}/low.nii.gz" for name in names)}
    kinds = ("brain.nii.gz", "head.nii.gz", "mask.nii.gz", "sources.json")
    expected |= {f"subjects/{name}/{kind}" for name in ("anna", "ben") for kind in kinds}
    assert set(contents(out)) == expected
    assert [pair.pair for pair in pairs] == names
    for seed, name in enumerate(("anna", "ben")):
        anatomy = phantom(texture=0.2, seed=seed)
        for kind, volume in (("brain", anatomy.image_brain), ("head", anatomy.image_head), ("mask", anatomy.mask)):
            data, affine = read_volume(subject_path(out, name, kind))
            assert np.array_equal(data, np.asarray(volume, np.float32)), kind
            np.testing.assert_allclose(affine, anatomy.affine)
    for pair in pairs:
        image = nib.load(low_path(out, pair))
        assert image.shape == (30, 32, 9)
        assert image.get_data_dtype() == np.float32
        assert image.header.get_zooms() == (1, 1, 4)
        assert image.header.get_xyzt_units() == ("mm", "sec")
    first, second = (read_volume(low_path(out, pair))[0] for pair in pairs[:2])
    assert not np.allclose(first, second)


def test_the_table_comes_back_as_it_was_drawn(finished: tuple[Path, list[PairParameters]]) -> None:
    out, pairs = finished
    assert read_pairs(out) == pairs
    with (out / "pairs.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert ",".join(rows[0]) == COLUMNS
    assert rows == [{key: str(value) for key, value in asdict(pair).items()} for pair in pairs]
    assert sorted({row["split"] for row in rows}) == ["train", "validation"]


def test_names_that_csv_must_quote_come_back(tmp_path: Path, finished: tuple[Path, list[PairParameters]]) -> None:
    pairs = [replace(finished[1][0], pair=name, subject=name) for name in ('a "b"', "Zoë, 2", "ßé")]
    write_pairs(tmp_path, pairs)
    assert sorted(read_pairs(tmp_path), key=lambda pair: pair.pair) == sorted(pairs, key=lambda pair: pair.pair)


def test_progress_counts_to_the_end(finished: tuple[Path, list[PairParameters]], subjects: Path) -> None:
    seen: list[tuple[int, int]] = []
    simulate_folder(subjects, finished[0], SETTINGS, progress=lambda *counts: seen.append(counts))
    assert seen == [(4, 4)]


# ---- going on


def test_a_lost_scan_is_made_again_and_nothing_else_is_touched(subjects: Path, folder: Path) -> None:
    pairs, before, stamps = read_pairs(folder), contents(folder), times(folder)
    lost = low_path(folder, pairs[1])
    lost.unlink()
    seen: list[tuple[int, int]] = []
    assert simulate_folder(subjects, folder, SETTINGS, progress=lambda *counts: seen.append(counts)) == pairs
    assert contents(folder) == before
    after = times(folder)
    assert {name for name in after if after[name] != stamps[name]} == {str(lost.relative_to(folder))}
    assert seen == [(3, 4), (4, 4)]


def test_another_preset_is_added_beside(subjects: Path, folder: Path) -> None:
    first, stamps = read_pairs(folder), times(folder)
    second = simulate_folder(subjects, folder, replace(SETTINGS, preset="siqt-k8-ood", draws=1))
    assert [pair.pair for pair in second] == ["anna_siqt-k8-ood_000", "ben_siqt-k8-ood_000"]
    assert read_pairs(folder) == sorted([*first, *second], key=lambda pair: pair.pair)
    assert all(low_path(folder, pair).is_file() for pair in second)
    after = times(folder)
    assert all(after[name] == stamp for name, stamp in stamps.items() if name != "pairs.csv")
    assert len({(pair.subject, pair.split) for pair in [*first, *second]}) == 2


def test_more_draws_are_added_to_the_ones_there(subjects: Path, folder: Path) -> None:
    first, stamps = read_pairs(folder), times(folder)
    more = simulate_folder(subjects, folder, replace(SETTINGS, draws=3))
    assert [pair for pair in more if not pair.pair.endswith("_002")] == first
    assert read_pairs(folder) == more
    after = times(folder)
    assert all(after[name] == stamp for name, stamp in stamps.items() if name != "pairs.csv")


@pytest.mark.parametrize("change", [{"seed": 4}, {"fixed": "WM"}, {"thick_axis": "R"}])
def test_the_same_pair_drawn_otherwise_is_refused(
    change: dict[str, object], subjects: Path, finished: tuple[Path, list[PairParameters]]
) -> None:
    out, _ = finished
    before = times(out)
    with pytest.raises(InputRefused, match="already holds anna_siqt-k4_000 drawn with other settings"):
        simulate_folder(subjects, out, replace(SETTINGS, **change))  # type: ignore[arg-type]
    assert times(out) == before


@pytest.mark.parametrize("preset", ["siqt-k4", "siqt-k8"])
def test_another_person_of_the_same_name_is_refused(folder: Path, tmp_path: Path, preset: str) -> None:
    save_two(tmp_path / "others")
    path = next((tmp_path / "others" / "anna").glob("*T1w_brain*"))
    image = nib.Nifti1Image.from_filename(path)
    nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine).to_filename(path)
    before = times(folder)
    with pytest.raises(InputRefused, match=r"subjects/anna was made from other files than .*others/anna holds"):
        simulate_folder(tmp_path / "others", folder, replace(SETTINGS, preset=preset))
    assert times(folder) == before


def test_a_folder_of_before_there_were_records_is_gone_on_with(subjects: Path, folder: Path) -> None:
    for record in folder.rglob("sources.json"):
        record.unlink()
    before = contents(folder)
    simulate_folder(subjects, folder, SETTINGS)
    assert {name: data for name, data in contents(folder).items() if not name.endswith("sources.json")} == before


@pytest.mark.usefixtures("inline")
def test_what_a_folder_of_before_there_were_records_holds_stays_with_its_scans(subjects: Path, folder: Path) -> None:
    for record in folder.rglob("sources.json"):
        record.unlink()
    stamps = times(folder)
    simulate_folder(subjects, folder, replace(SETTINGS, preset="siqt-k8"))
    after = times(folder)
    assert all(after[name] == stamp for name, stamp in stamps.items() if name != "pairs.csv")


@pytest.mark.usefixtures("inline")
def test_volumes_that_an_interrupt_left_are_made_again_from_files_that_were_mended(
    subjects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Path(shutil.copytree(subjects, tmp_path / "study"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lfmri_trainer.simulation.simulate.keep_sources", interrupt)
        with pytest.raises(KeyboardInterrupt):
            simulate_folder(study, tmp_path / "out", SETTINGS)
    assert (tmp_path / "out" / "subjects" / "anna" / "head.nii.gz").is_file()
    path = study / "anna" / "brain_mask.nii.gz"
    mask = nib.Nifti1Image.from_filename(path)
    mended = np.asarray(mask.dataobj).copy()
    mended[:6] = 0
    nib.Nifti1Image(mended, mask.affine).to_filename(path)
    (study / "anna" / "T1w.nii.gz").unlink()
    simulate_folder(study, tmp_path / "out", SETTINGS)
    simulate_folder(study, tmp_path / "again", SETTINGS)
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


def test_a_subject_keeps_its_split_in_every_preset(subjects: Path, finished: tuple[Path, list[PairParameters]]) -> None:
    out, pairs = finished
    before = times(out)
    trained = next(pair.subject for pair in pairs if pair.split == "train")
    moved = replace(SETTINGS, preset="siqt-k8", test_subjects=(trained,))
    with pytest.raises(InputRefused, match=f"holds {trained} in the split train, not test"):
        simulate_folder(subjects, out, moved)
    assert times(out) == before


def test_an_interrupted_run_leaves_finished_pairs_and_goes_on(
    subjects: Path, finished: tuple[Path, list[PairParameters]], tmp_path: Path
) -> None:
    study, out = Path(shutil.copytree(subjects, tmp_path / "study")), tmp_path / "out"
    whole = study / "ben" / "T1w_brain.nii.gz"
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])  # its header can be read, its data cannot
    with pytest.raises(InputRefused, match=r"ben.*not readable"):
        simulate_folder(study, out, SETTINGS)
    left = contents(out)
    assert {name for name in left if name.endswith("low.nii.gz")} == {
        "pairs/anna_siqt-k4_000/low.nii.gz",
        "pairs/anna_siqt-k4_001/low.nii.gz",
    }
    assert not [name for name in left if ".tmp." in name]
    assert len(read_pairs(out)) == 4  # what was planned is known
    with pytest.raises(InputRefused, match="run `lfmri simulate` again to finish it"):
        read_volume(low_path(out, read_pairs(out)[-1]))
    whole.write_bytes(content)
    simulate_folder(study, out, SETTINGS)
    assert contents(out) == contents(finished[0])


def test_two_workers_write_the_same_bytes(
    subjects: Path, finished: tuple[Path, list[PairParameters]], tmp_path: Path
) -> None:
    assert simulate_folder(subjects, tmp_path, SETTINGS, workers=2) == finished[1]
    assert contents(tmp_path) == contents(finished[0])


@pytest.mark.usefixtures("inline")
def test_the_number_of_threads_does_not_reach_the_bytes(tmp_path: Path) -> None:
    anatomy = phantom(texture=0.2)
    names = ("image_brain", "image_head", "mask", "gm", "wm", "csf")
    # On the small phantom BLAS takes one thread by itself.
    tall = replace(anatomy, **{name: np.repeat(getattr(anatomy, name), 2, axis=2) for name in names})
    save_subject(tmp_path / "study" / "anna", tall)
    for threads in (1, 3):
        with threadpool_limits(threads):
            settings = replace(SETTINGS, preset="ultra-low-field")
            simulate_folder(tmp_path / "study", tmp_path / str(threads), settings)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


# ---- a subject that has to be taken out, and one that is added


@pytest.mark.parametrize("fault", ["a map alone", "another grid"])
def test_what_names_and_headers_tell_is_refused_before_the_table_is_written(
    subjects: Path, tmp_path: Path, fault: str
) -> None:
    study = Path(shutil.copytree(subjects, tmp_path / "study"))
    if fault == "a map alone":
        (study / "ben" / "wm.nii.gz").unlink()
    else:
        nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)).to_filename(study / "ben" / "brain_mask.nii.gz")
    with pytest.raises(InputRefused, match=r"add the missing one|resample one onto the other"):
        simulate_folder(study, tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("inline")
def test_the_others_go_on_after_a_subject_was_taken_out(
    subjects: Path, finished: tuple[Path, list[PairParameters]], tmp_path: Path
) -> None:
    study, out = Path(shutil.copytree(subjects, tmp_path / "study")), tmp_path / "out"
    (bad,) = {pair.subject for pair in finished[1] if pair.split == "train"}
    (study / bad / "T1w_brain.nii.gz").write_bytes((study / bad / "T1w_brain.nii.gz").read_bytes()[:5000])
    with pytest.raises(InputRefused, match="data not readable"):
        simulate_folder(study, out, SETTINGS)
    shutil.rmtree(study / bad)
    done = simulate_folder(study, out, SETTINGS)
    assert done == [pair for pair in finished[1] if pair.subject != bad]
    told = rf"{bad}/brain\.nii\.gz not found.*taken out, delete its rows from pairs\.csv"
    with pytest.raises(InputRefused, match=told):
        learn_processing(out, read_pairs(out), voxel_size=1.0, multiple=16)
    assert contents(out) == {name: data for name, data in contents(finished[0]).items() if f"/{bad}" not in name}


@pytest.mark.parametrize("seed", range(5))
def test_people_keep_their_split_when_others_come_and_go(tmp_path: Path, seed: int) -> None:
    settings = replace(SETTINGS, draws=1, validation=0.2, seed=seed)
    found = fake_subjects(tmp_path, [f"s{i:02}" for i in range(30)])
    first = plan(found[5:15], settings)
    assert [pair.split for pair in first].count("validation") == 2
    assert plan(found[5:12], settings, first) == first[:7]
    grown = plan(found, settings, first)
    assert grown[5:15] == first
    assert [pair.split for pair in grown].count("validation") == 6
    others = plan(found, replace(settings, seed=seed + 1), grown)
    assert [pair.split for pair in others] == [pair.split for pair in grown]
    one_by_one: list[PairParameters] = []
    for number in range(1, 31):
        one_by_one = plan(found[:number], settings, one_by_one)
    assert [pair.split for pair in one_by_one].count("validation") == 6


def test_the_split_of_a_session_is_that_of_the_person_there(tmp_path: Path) -> None:
    people = [f"sub-{i}" for i in range(10)]
    first = plan(fake_subjects(tmp_path, [f"{name}_ses-1" for name in people]), SETTINGS)
    second = plan(fake_subjects(tmp_path, [f"{name}_ses-2" for name in people]), replace(SETTINGS, seed=9), first)
    assert [pair.split for pair in second] == [pair.split for pair in first]


# ---- splits


def test_subjects_are_split_whole(tmp_path: Path) -> None:
    found = fake_subjects(tmp_path, [f"s{i:02}" for i in range(20)])
    pairs = plan(found, replace(SETTINGS, draws=3, validation=0.2))
    splits = {(pair.subject, pair.split) for pair in pairs}
    assert len(pairs) == 60
    assert len(splits) == 20
    assert sorted(split for _, split in splits) == ["train"] * 16 + ["validation"] * 4
    assert pairs == plan(found, replace(SETTINGS, draws=3, validation=0.2))
    others = plan(found, replace(SETTINGS, draws=3, validation=0.2, seed=4))
    assert {(pair.subject, pair.split) for pair in others} != splits


def test_named_subjects_are_held_out(tmp_path: Path) -> None:
    found = fake_subjects(tmp_path, [f"s{i}" for i in range(10)])
    pairs = plan(found, replace(SETTINGS, draws=1, validation_subjects=("s3",), test_subjects=("s1", "s7")))
    splits = {pair.subject: pair.split for pair in pairs}
    assert splits == dict.fromkeys(splits, "train") | {"s3": "validation", "s1": "test", "s7": "test"}


def test_test_subjects_are_not_drawn_for_validation(tmp_path: Path) -> None:
    found = fake_subjects(tmp_path, [f"s{i}" for i in range(6)])
    for seed in range(20):
        pairs = plan(found, replace(SETTINGS, draws=1, validation=0.5, test_subjects=("s0", "s1"), seed=seed))
        splits = {pair.subject: pair.split for pair in pairs}
        assert (splits["s0"], splits["s1"]) == ("test", "test")
        assert sorted(splits.values()).count("validation") == 2


def test_an_unknown_subject_is_refused(tmp_path: Path) -> None:
    found = fake_subjects(tmp_path, ["anna", "ben"])
    for settings in (replace(SETTINGS, validation_subjects=("carl",)), replace(SETTINGS, test_subjects=("carl",))):
        with pytest.raises(UsageError, match="no subject named carl; expected some of anna, ben"):
            plan(found, settings)


def test_a_subject_cannot_be_held_out_twice(tmp_path: Path) -> None:
    found = fake_subjects(tmp_path, ["anna", "ben"])
    with pytest.raises(UsageError, match="ben named for validation and for test"):
        plan(found, replace(SETTINGS, validation_subjects=("ben",), test_subjects=("anna", "ben")))


def test_an_unknown_preset_is_refused(subjects: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown preset 'siqt-k5'; expected one of siqt-k4, .*ultra-low-field"):
        simulate_folder(subjects, tmp_path / "out", replace(SETTINGS, preset="siqt-k5"))
    assert not (tmp_path / "out").exists()


def test_an_unreadable_header_is_refused_before_anything_is_written(subjects: Path, tmp_path: Path) -> None:
    save_subject(tmp_path / "study" / "anna", phantom())
    (tmp_path / "study" / "anna" / "T1w_brain.nii.gz").write_bytes(b"no volume")
    with pytest.raises(InputRefused, match="T1w_brain"):
        simulate_folder(tmp_path / "study", tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


# ---- reading the table


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=r"pairs\.csv not found; expected the folder that `lfmri simulate` made"):
        read_pairs(tmp_path)


@pytest.mark.parametrize(
    "header",
    ["", COLUMNS.removesuffix(",seed"), COLUMNS + ",colour", COLUMNS.replace("snr_wm,snr_gm", "snr_gm,snr_wm")],
)
def test_other_columns_are_refused(header: str, table: Path) -> None:
    text = (table / "pairs.csv").read_text(encoding="utf-8")
    (table / "pairs.csv").write_text(text.replace(COLUMNS, header), encoding="utf-8")
    with pytest.raises(InputRefused, match="has the columns"):
        read_pairs(table)


@pytest.mark.parametrize(
    ("column", "value"),
    [("spacing", "four"), ("snr_wm", ""), ("seed", "1.5"), ("split", "training"), ("split", ""), ("bias", "0,1")],
)
def test_a_bad_value_is_refused_with_its_line(column: str, value: str, table: Path) -> None:
    with (table / "pairs.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    rows[1][column] = value
    with (table / "pairs.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS.split(","))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(InputRefused, match=r"pairs\.csv, line 3"):
        read_pairs(table)


def test_a_row_cut_short_is_refused(table: Path) -> None:
    path = table / "pairs.csv"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputRefused, match=r"pairs\.csv, line 5"):
        read_pairs(table)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00p", b'pair,"' + b"x" * 200_000])
def test_what_is_no_table_is_refused(content: bytes, table: Path) -> None:
    (table / "pairs.csv").write_bytes(content)
    with pytest.raises(InputRefused, match="not a table"):
        read_pairs(table)


def test_the_sessions_of_one_person_stay_in_one_split() -> None:
    names = [f"sub-{person}_ses-{session}" for person in range(6) for session in (1, 2)]
    for seed in range(10):
        splits = _splits(names, replace(SETTINGS, validation=0.5, seed=seed, test_subjects=("sub-5",)), {})
        assert all(splits[f"sub-{person}_ses-1"] == splits[f"sub-{person}_ses-2"] for person in range(6))
        assert splits["sub-5_ses-2"] == "test"
        assert set(splits.values()) == {"train", "validation", "test"}
