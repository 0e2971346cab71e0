"""The watched folder: what is taken and when, where originals and results end, and what survives kill -9."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfmri_runtime.console import interruptions
from lfmri_runtime.console.journal import Journal
from lfmri_runtime.console.settings import (
    ConsoleSettings,
    DiskSettings,
    FolderSettings,
    ModelSettings,
    OutputSettings,
)
from lfmri_runtime.console.station import EnhanceOptions, Station
from lfmri_runtime.enhancer import Enhanced
from lfmri_runtime.errors import TryAgainLater, UsageError
from lfmri_runtime.files import sha256_file
from lfmri_runtime.folder import work
from lfmri_runtime.folder.items import mark_of
from lfmri_runtime.folder.names import LONGEST, free_name
from lfmri_runtime.folder.spool import Spool
from lfmri_runtime.folder.surface import FolderSurface, make_worker
from lfmri_runtime.folder.watching import Watcher
from lfmri_runtime.sidecar import read_sidecar
from lfmri_runtime.volume import read_scan

from . import dicoms
from .bundles import MakeBundle
from .heads import scan_of

DEADLINE = 30.0
STAGES = {"read", "wait", "prepare", "network", "loop", "check", "restore", "write"}
MakeNifti = Callable[..., Path]


class Recorder:
    """A sink that keeps events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def record(self, event: str, fields: dict[str, Any]) -> None:
        self.events.append((event, fields))

    def names(self) -> list[str]:
        return [event for event, _ in self.events]


@pytest.fixture(scope="module")
def shared(make_bundle: MakeBundle) -> Iterator[Station]:
    station = Station(ModelSettings(backend="onnxruntime", bundle=str(make_bundle("noisy")), threads=1), Journal())
    yield station
    station.close()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def station(shared: Station, recorder: Recorder) -> Station:
    shared.journal = Journal([recorder])
    return shared


class Folders:
    """IN and OUT of one test, and a watcher of them that is asked to look."""

    def __init__(self, root: Path, station: Station, **changes: Any) -> None:
        self.input, self.output = root / "in", root / "out"
        self.input.mkdir(exist_ok=True)
        self.settings = ConsoleSettings(
            folder=FolderSettings(input=str(self.input), output=str(self.output), poll_seconds=0.02), **changes
        )
        self.station = station
        self.open()

    def open(self) -> None:
        self.spool = Spool(self.input, self.output, layout="plain")
        self.worker = make_worker(self.settings, self.station, EnhanceOptions())
        self.watcher = Watcher(self.spool, self.worker, least_free_mib=self.settings.disk.least_free_mib)

    def drop(self, source: Path, name: str | None = None) -> Path:
        return shutil.copy(source, self.input / (name or source.name))

    def look(self, times: int = 2, *, hurry: bool = True) -> list[work.Result]:
        for refusals in self.watcher._waits.values() if hurry else ():
            refusals.due = 0.0
        return [result for _ in range(times) for result in self.watcher.look()]

    def reason(self, name: str) -> str:
        return (self.input / "failed" / f"{name}.reason.txt").read_text()


@pytest.fixture
def folders(tmp_path: Path, station: Station) -> Iterator[Folders]:
    folders = Folders(tmp_path, station)
    yield folders
    folders.spool.close()


@pytest.fixture
def scan(make_nifti: MakeNifti) -> Path:
    data, affine = scan_of(np.diag([1.5, 1.2, 5.0, 1.0]))
    return make_nifti("scan.nii.gz", data=data, affine=affine, dtype=np.float32)


def tree(folder: Path) -> set[str]:
    """Every file and link below a folder, the locks apart."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in found if path.name != ".lfmri.lock"}


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "the deadline has passed"
        time.sleep(0.005)


# One scan


def test_a_scan_is_enhanced_beside_its_unchanged_original(
    folders: Folders, scan: Path, recorder: Recorder, station: Station
) -> None:
    source = sha256_file(folders.drop(scan))
    (result,) = folders.look()
    assert tree(folders.input) == {"done/scan.nii.gz"}
    assert sha256_file(folders.input / "done" / "scan.nii.gz") == source
    assert tree(folders.output) == {"scan.nii.gz", "scan.json", "scan.result.json"}
    read = read_scan(scan)
    expected = station.enhancer.enhance(read.data, read.affine, grid="input")
    np.testing.assert_array_equal(read_scan(folders.output / "scan.nii.gz").data, expected.mean)
    document = json.loads((folders.output / "scan.result.json").read_text())
    assert document["bundle"] == station.enhancer.bundle.sha256
    (said,) = document["scans"]
    assert (said["status"], said["source"], said["reason"]) == ("enhanced", source, "")
    assert said["milliseconds"].keys() == STAGES == result.seconds.keys()
    assert said["milliseconds"] == {stage: round(1000 * seconds) for stage, seconds in result.seconds.items()}
    assert recorder.names() == ["received", "enhanced", "sent"]
    assert {fields["source"] for _, fields in recorder.events} == {source}
    timed = [stage for _, fields in recorder.events for stage in fields.get("seconds", {})]
    assert sorted(timed) == sorted(STAGES), "each stage is timed once"


def test_the_uncertainty_and_the_grid_are_the_settings(tmp_path: Path, station: Station, scan: Path) -> None:
    folders = Folders(tmp_path, station, output=OutputSettings(uncertainty=True))
    folders.worker.options = EnhanceOptions(samples=2, grid="isotropic")
    folders.drop(scan)
    folders.look()
    left = {"scan.nii.gz", "scan.json", "scan.result.json", "scan_uncertainty.nii.gz", "scan_uncertainty.json"}
    assert tree(folders.output) == left
    for name in ("scan.json", "scan_uncertainty.json"):
        said = json.loads((folders.output / name).read_text())
        assert said["label"] == OutputSettings().label
        assert said["bundle"]["sha256"] == station.enhancer.bundle.sha256
    assert read_scan(folders.output / "scan.nii.gz").voxel_size == pytest.approx((1, 1, 1))
    folders.spool.close()


def test_a_file_that_grows_is_left_until_it_is_whole(folders: Folders, scan: Path) -> None:
    content = scan.read_bytes()
    target = folders.input / "scan.nii.gz"
    for end in (0, len(content) // 3, len(content) // 2, len(content)):
        target.write_bytes(content[:end])
        assert folders.look(1) == []
        assert target.exists()
    assert [result.status for result in folders.look(1)] == ["enhanced"]


@pytest.mark.parametrize("change", ["time", "size"])
def test_a_file_of_which_only_one_of_size_and_time_changes_is_left(folders: Folders, scan: Path, change: str) -> None:
    target = folders.drop(scan)
    before = target.stat().st_mtime_ns
    folders.look(1)
    if change == "size":
        target.write_bytes(target.read_bytes()[:-1])
    os.utime(target, ns=(1, 1) if change == "time" else (before, before))
    assert folders.look(1) == []
    assert len(folders.look(1)) == 1


def test_a_half_copied_file_fails_and_a_whole_copy_of_its_name_works(folders: Folders, scan: Path) -> None:
    (folders.input / "scan.nii.gz").write_bytes(scan.read_bytes()[:-2000])
    assert [result.status for result in folders.look()] == ["failed"]
    assert "ends too early" in folders.reason("scan.nii.gz")
    assert tree(folders.output) == set()
    folders.drop(scan)
    assert [result.status for result in folders.look()] == ["enhanced"]
    assert tree(folders.input) == {
        "failed/scan.nii.gz",
        "failed/scan.nii.gz.reason.txt",
        "done/scan.nii.gz",
    }


def test_what_its_sender_goes_on_writing_after_the_claim_is_waited_for_again(
    folders: Folders, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders.drop(scan)
    enhance = folders.station.enhance

    def late(*arguments: Any, **named: Any) -> Enhanced:
        monkeypatch.undo()
        os.utime(folders.input / "working" / "scan.nii.gz", ns=(1, 1))
        return enhance(*arguments, **named)

    monkeypatch.setattr(folders.station, "enhance", late)
    with pytest.raises(TryAgainLater, match="changed while"):
        folders.look()
    assert tree(folders.input) == {"scan.nii.gz"}
    assert tree(folders.output) == set()
    assert [result.status for result in folders.look()] == ["enhanced"]
    assert tree(folders.output) == {"scan.nii.gz", "scan.json", "scan.result.json"}


def test_the_oldest_comes_first_and_what_changes_while_it_waits_is_left(
    folders: Folders, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in ((30, "a.nii.gz"), (10, "b.nii.gz"), (20, "c.nii.gz")):
        os.utime(folders.drop(scan, name), (1e9 - age, 1e9 - age))
    enhance = folders.station.enhance

    def meanwhile(*arguments: Any, **named: Any) -> Enhanced:
        lying = {name for name in tree(folders.input) if not name.endswith(".interruptions")}
        assert lying == {"working/a.nii.gz", "b.nii.gz", "c.nii.gz"}
        monkeypatch.undo()
        os.utime(folders.input / "c.nii.gz")
        return enhance(*arguments, **named)

    monkeypatch.setattr(folders.station, "enhance", meanwhile)
    assert len(folders.look()) == 2
    assert tree(folders.input) == {"done/a.nii.gz", "done/b.nii.gz", "c.nii.gz"}


# Names


@pytest.mark.parametrize(
    "name", [".scan.nii.gz", "scan.nii.gz.part", "scan.nii.gz~", "scan.NII.TMP", "notes.txt", "a.json"]
)
def test_hidden_unfinished_and_other_files_are_left(folders: Folders, scan: Path, name: str) -> None:
    folders.drop(scan, name)
    assert folders.look(3) == []
    assert tree(folders.input) == {name}


def test_two_scans_of_one_name_replace_nothing(folders: Folders, scan: Path, make_nifti: MakeNifti) -> None:
    other = make_nifti("other.nii")
    sources = []
    for given, name in ((scan, "a.nii.gz"), (other, "a.nii"), (scan, "a.nii.gz")):
        sources.append(sha256_file(folders.drop(given, name)))
        folders.look()
    assert tree(folders.input) == {"done/a.nii.gz", "done/a-2.nii", "done/a-3.nii.gz"}
    for name, source in zip(("a.nii.gz", "a-2.nii", "a-3.nii.gz"), sources, strict=True):
        document = read_sidecar(folders.output / name)
        assert document is not None
        assert document["input"]["sha256"] == source
        assert sha256_file(folders.input / "done" / name) == source


def test_an_original_replaces_no_earlier_one_when_results_have_been_collected(folders: Folders, scan: Path) -> None:
    for content in (scan.read_bytes(), scan.read_bytes() + bytes(4), b"no image", b"nor this"):
        (folders.input / "scan.nii.gz").write_bytes(content)
        folders.look()
        for path in folders.output.glob("scan*"):
            path.unlink()
    assert tree(folders.input) == {
        *("done/scan.nii.gz", "done/scan-2.nii.gz", "failed/scan.nii.gz", "failed/scan-2.nii.gz"),
        *("failed/scan.nii.gz.reason.txt", "failed/scan-2.nii.gz.reason.txt"),
    }
    assert (folders.input / "failed" / "scan-2.nii.gz").read_bytes() == b"nor this"


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.json", "scan.result.json"])
def test_what_others_wrote_into_the_output_folder_is_not_replaced(folders: Folders, scan: Path, name: str) -> None:
    (folders.output / name).write_text("theirs")
    folders.drop(scan)
    folders.look()
    assert (folders.output / name).read_text() == "theirs"
    assert tree(folders.output) == {name, "scan-2.nii.gz", "scan-2.json", "scan-2.result.json"}


def test_names_that_are_long_or_no_text_work(folders: Folders, scan: Path) -> None:
    names = ["x" * 244 + ".nii.gz", "ü" * 120 + ".nii.gz", os.fsdecode(b"\xff\n.nii.gz"), "bad\udcff.nii"]
    for name in names[:3]:
        folders.drop(scan, name)
    (folders.input / names[3]).write_bytes(b"no image")
    statuses = sorted(result.status for result in folders.look())
    assert statuses == ["enhanced", "enhanced", "enhanced", "failed"]
    assert len(tree(folders.output)) == 9


def test_free_names_are_short_and_keep_their_suffix() -> None:
    assert free_name("a.NII.gz", lambda name: False) == "a.NII.gz"
    assert free_name("a.b", {"a.b", "a.b-2"}.__contains__) == "a.b-3"
    long = free_name("é" * 150 + ".nii", lambda name: not name.endswith("-2.nii"))
    assert long.endswith("é-2.nii")
    assert len(os.fsencode(long)) <= LONGEST


def link_to_a_scan(place: Path, scan: Path) -> None:
    place.symlink_to(scan)


def folder_with_a_link(place: Path, scan: Path) -> None:
    place.mkdir()
    (place / "1.dcm").symlink_to(scan)


def pipe(place: Path, scan: Path) -> None:
    os.mkfifo(place)


@pytest.mark.parametrize(
    ("make", "said"), [(link_to_a_scan, "a link"), (folder_with_a_link, "a link"), (pipe, "no file")]
)
def test_links_and_pipes_are_refused_unopened(
    folders: Folders, scan: Path, make: Callable[[Path, Path], None], said: str
) -> None:
    make(folders.input / "a.nii.gz", scan)
    assert [result.status for result in folders.look()] == ["failed"]
    assert said in folders.reason("a.nii.gz")
    assert tree(folders.output) == set()
    assert scan.is_file()


# What goes wrong


def test_a_scan_that_fails_does_not_stop_the_next(
    folders: Folders, scan: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    read = work.read_scan

    def breaks(path: Path) -> Any:
        if path.name.startswith("a"):
            raise ZeroDivisionError("DOE^JANE")
        return read(path)

    monkeypatch.setattr(work, "read_scan", breaks)
    (folders.input / "b.nii").write_bytes(b"no image")
    for name in ("a.nii.gz", "DOE^JANE.nii.gz"):
        folders.drop(scan, name)
    (folders.input / "DOE^JOHN.nii").write_bytes(b"no image")
    assert sorted(result.status for result in folders.look()) == ["enhanced", "failed", "failed", "failed"]
    assert "unexpected ZeroDivisionError" in folders.reason("a.nii.gz")
    assert folders.reason("b.nii").startswith("the scan: not a single-file NIfTI image")
    said = json.dumps(recorder.events) + "".join(p.read_text() for p in folders.output.glob("*.json"))
    for word in ("DOE", "JANE", "JOHN", str(folders.input)):
        assert word not in said


def test_a_machine_that_cannot_finish_keeps_the_scan_for_later(
    folders: Folders, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: object) -> None:
        raise TryAgainLater(f"{path}: disk full")

    folders.drop(scan, "DOE.nii.gz")
    monkeypatch.setattr("lfmri_runtime.job.write_json", full)  # the image is written, its sidecar is not
    for _ in range(interruptions.MOST + 1):
        with pytest.raises(TryAgainLater, match="an output: disk full"):
            folders.look()
        assert tree(folders.input) == {"DOE.nii.gz"}
        assert tree(folders.output) == set()
    monkeypatch.undo()
    assert [result.status for result in folders.look()] == ["enhanced"]
    assert tree(folders.input) == {"done/DOE.nii.gz"}
    assert tree(folders.output) == {"DOE.nii.gz", "DOE.json", "DOE.result.json"}


def test_a_scan_that_takes_processes_down_is_given_up_and_the_next_has_its_turn(folders: Folders, scan: Path) -> None:
    heavy = folders.drop(scan, "heavy.nii.gz")
    mark = mark_of(heavy)
    assert mark is not None
    claim = folders.spool.claim(heavy, mark, lambda name: False)
    assert claim is not None
    for _ in range(interruptions.MOST):
        assert folders.spool.claimed() == [claim]
        interruptions.begin(folders.spool.interruptions(claim))  # and killed in the midst of it
        folders.spool.close()
        folders.open()
    folders.drop(scan, "light.nii.gz")
    assert [result.status for result in folders.look()] == ["failed", "enhanced"]
    assert "processes ended" in folders.reason("heavy.nii.gz")
    assert tree(folders.input) == {"failed/heavy.nii.gz", "failed/heavy.nii.gz.reason.txt", "done/light.nii.gz"}
    folders.drop(scan, "heavy.nii.gz")  # another one, or with more memory
    assert [result.status for result in folders.look()] == ["enhanced"]


def test_interruptions_count_against_the_scan_and_not_its_name(folders: Folders, scan: Path) -> None:
    def claimed(path: Path) -> Path:
        mark = mark_of(path)
        assert mark is not None
        claim = folders.spool.claim(path, mark, lambda name: False)
        assert claim is not None
        return claim

    claim = claimed(folders.drop(scan))
    for _ in range(interruptions.MOST):
        interruptions.begin(folders.spool.interruptions(claim))
    folders.spool.give_back(claim)
    assert interruptions.worn_out(folders.spool.interruptions(claimed(folders.input / scan.name)))
    claim.unlink()  # by a person
    os.utime(folders.drop(scan), (1e9, 1e9))  # the next patient's
    assert [result.status for result in folders.look()] == ["enhanced"]
    assert tree(folders.input) == {f"done/{scan.name}"}


def test_a_working_folder_that_cannot_be_marked_is_waited_for(
    folders: Folders, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(marks: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(marks))

    folders.drop(scan)
    with monkeypatch.context() as patch:
        patch.setattr(interruptions, "begin", full)
        with pytest.raises(TryAgainLater, match="No space left on device; expected a folder that can be written"):
            folders.look()
    assert [result.status for result in folders.look()] == ["enhanced"]


def test_a_scan_on_which_the_device_fails_again_and_again_is_given_up(
    folders: Folders, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[str] = []

    def fails(*_: Any, **__: Any) -> None:
        failed.append("failed on its device")
        raise TryAgainLater("the GPU failed")

    os.utime(folders.drop(scan), (1e9, 1e9))
    folders.drop(scan, "waits.nii.gz")
    with monkeypatch.context() as patch:
        patch.setattr(Station, "enhance", fails)
        patch.setattr(Station, "trouble", lambda station: failed[0] if failed else None)
        for _ in range(interruptions.MOST):
            with pytest.raises(TryAgainLater, match="the GPU failed"):
                folders.look()
            assert len(failed) == 1, "the other scan is not tried on a broken device"
            assert folders.look() == []
            failed.clear()
            assert (folders.input / "scan.nii.gz").is_file()
            folders.spool.close()
            folders.open()
    assert [result.status for result in folders.look()] == ["failed", "enhanced"]
    assert tree(folders.input) == {"failed/scan.nii.gz", "failed/scan.nii.gz.reason.txt", "done/waits.nii.gz"}


def test_a_scan_that_never_fits_fills_no_journal(
    folders: Folders, scan: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise TryAgainLater("too little free memory")

    folders.drop(scan)
    folders.look(1)
    with monkeypatch.context() as patch:
        patch.setattr(Station, "enhance", never)
        tries = 0
        for number in range(50):
            try:
                folders.look(1, hurry=number == 25)
            except TryAgainLater:
                tries += 1
    assert tries == 2
    assert recorder.names() == ["received"]
    assert tree(folders.input) == {"scan.nii.gz"}
    folders.look()
    folders.drop(scan, "again.nii.gz")
    folders.look()
    assert recorder.names() == 2 * ["received", "enhanced", "sent"]
    assert folders.watcher._waits == {}


@pytest.mark.parametrize("name", ["done", "failed"])
def test_folders_of_originals_may_be_cleared_away(folders: Folders, scan: Path, recorder: Recorder, name: str) -> None:
    folders.look(1)
    (folders.input / name).rmdir()
    folders.drop(scan) if name == "done" else (folders.input / "scan.nii.gz").write_bytes(b"no image")
    assert len(folders.look(3)) == 1
    assert f"{name}/scan.nii.gz" in tree(folders.input)
    assert len([event for event in recorder.names() if event in ("sent", "failed")]) == 1


def test_only_a_claim_that_is_gone_is_passed_over(
    folders: Folders, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(claim: Path) -> None:
        claim.unlink()
        raise FileNotFoundError

    def missing(claim: Path) -> None:
        raise FileNotFoundError

    for number, finish in enumerate((taken, missing)):
        folders.drop(scan, f"{number}.nii.gz")
        monkeypatch.setattr(folders.spool, "finish", finish)
        if finish is missing:
            with pytest.raises(FileNotFoundError):
                folders.look()
        else:
            assert folders.look() == []


def test_a_reason_that_cannot_be_written_names_no_file(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise TryAgainLater(f"{path}: disk full")

    (folders.input / "DOE.nii").write_bytes(b"no image")
    monkeypatch.setattr("lfmri_runtime.folder.spool.write_text", full)
    with pytest.raises(TryAgainLater, match=r"failed cannot be written") as caught:
        folders.look()
    assert "DOE" not in str(caught.value)
    assert tree(folders.input) == {"DOE.nii"}


def test_a_link_in_the_output_folder_is_not_followed(folders: Folders, scan: Path, tmp_path: Path) -> None:
    dicoms.classic(folders.input / "series")
    folders.drop(scan)
    for name in ("series", "scan.nii.gz"):
        (folders.output / name).symlink_to(tmp_path / "elsewhere")
    assert [result.status for result in folders.look()] == ["enhanced"] * 2
    assert not (tmp_path / "elsewhere").exists()
    assert (folders.output / "series-2").is_dir()
    assert (folders.output / "scan-2.nii.gz").is_file()


def test_nothing_is_claimed_while_the_disk_is_short(tmp_path: Path, station: Station, scan: Path) -> None:
    folders = Folders(tmp_path, station, disk=DiskSettings(least_free_mib=1 << 40))
    folders.drop(scan)
    folders.look(1)
    with pytest.raises(TryAgainLater, match="MiB free"):
        folders.look(1)
    assert tree(folders.input) == {"scan.nii.gz"}
    folders.spool.close()


def test_two_watchers_do_not_share_a_folder(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(TryAgainLater, match="another watcher holds"):
        Spool(folders.input, tmp_path / "elsewhere", layout="plain")
    with pytest.raises(TryAgainLater, match="another watcher holds"):
        Spool(tmp_path / "second", folders.output, layout="plain")
    Spool(tmp_path / "second", tmp_path / "elsewhere", layout="plain").close()
    folders.spool.close()
    Spool(folders.input, folders.output, layout="plain").close()


@pytest.mark.parametrize("output", ["in", "in/out", "in/x/../out"])
def test_an_output_inside_the_input_is_refused(tmp_path: Path, output: str) -> None:
    with pytest.raises(UsageError, match="expected an output folder outside of it"):
        Spool(tmp_path / "in", tmp_path / output, layout="plain")


# Taken up again


def test_finished_work_is_recognised_and_half_done_work_is_done_again(
    folders: Folders, scan: Path, recorder: Recorder
) -> None:
    folders.drop(scan)
    folders.look()
    expected = (folders.output / "scan.nii.gz").read_bytes()
    recorder.events.clear()
    # Killed after the sidecar, before the move.
    (folders.input / "done" / "scan.nii.gz").rename(folders.input / "working" / "scan.nii.gz")
    (folders.output / "scan.result.json").unlink()
    (result,) = folders.look(1)
    assert (result.status, recorder.names()) == ("enhanced", ["sent"])
    assert result.seconds.keys() == STAGES
    assert tree(folders.output) == {"scan.nii.gz", "scan.json", "scan.result.json"}
    # Killed after the image and while the sidecar was written.
    (folders.input / "done" / "scan.nii.gz").rename(folders.input / "working" / "scan.nii.gz")
    (folders.output / "scan.json").rename(folders.output / ".0123abcd.tmp.scan.json")
    (folders.output / "scan.nii.gz").write_bytes(b"another")
    folders.look(1)
    assert recorder.names() == ["sent", "received", "enhanced", "sent"]
    assert (folders.output / "scan.nii.gz").read_bytes() == expected
    assert tree(folders.output) == {"scan.nii.gz", "scan.json", "scan.result.json"}
    assert tree(folders.input) == {"done/scan.nii.gz"}
    # Results of another scan are no results of this one.
    document = json.loads((folders.output / "scan.json").read_text())
    (folders.output / "scan.json").write_text(json.dumps({**document, "input": {"sha256": "another"}}))
    (folders.input / "done" / "scan.nii.gz").rename(folders.input / "working" / "scan.nii.gz")
    recorder.events.clear()
    folders.look(1)
    assert recorder.names() == ["received", "enhanced", "sent"]


def test_work_for_another_output_folder_replaces_nothing_here(folders: Folders, scan: Path, tmp_path: Path) -> None:
    folders.drop(scan)
    (folders.input / "scan.nii.gz").rename(folders.input / "working" / "scan.nii.gz")
    folders.spool.close()
    folders.settings = replace(folders.settings, folder=replace(folders.settings.folder, output=str(tmp_path / "new")))
    folders.output = tmp_path / "new"
    folders.output.mkdir()
    (folders.output / "scan.nii.gz").write_text("theirs")
    folders.open()
    assert folders.look(1) == []
    folders.look(1)
    assert (folders.output / "scan.nii.gz").read_text() == "theirs"
    assert tree(folders.output) == {"scan.nii.gz", "scan-2.nii.gz", "scan-2.json", "scan-2.result.json"}


# DICOM


def test_a_folder_of_series_has_a_fate_for_each(folders: Folders, tmp_path: Path, recorder: Recorder) -> None:
    def localiser(ds: Any, k: int) -> None:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        ds.SeriesInstanceUID, ds.SOPInstanceUID = "1.2.3", f"1.2.3.{k}"

    dicoms.classic(tmp_path / "study" / "one")
    dicoms.classic(tmp_path / "study" / "two", change=localiser)
    (tmp_path / "study" / "notes.txt").write_text("DOE^JANE")
    before = {path: path.read_bytes() for path in sorted((tmp_path / "study").rglob("*.dcm"))}
    shutil.copytree(tmp_path / "study", folders.input / "DOE")
    results = {result.source: result for result in folders.look()}
    assert {source: result.status for source, result in results.items()} == {
        dicoms.SERIES: "enhanced",
        "1.2.3": "passed-by",
    }
    assert "localiser" in results["1.2.3"].reason
    assert results[dicoms.SERIES].seconds.keys() == STAGES
    for path, content in before.items():
        assert (folders.input / "done" / "DOE" / path.relative_to(tmp_path / "study")).read_bytes() == content
    (sidecar,) = (folders.output / "DOE").glob("*.json")
    assert len(list(sidecar.with_suffix("").glob("*.dcm"))) == dicoms.SLICES
    assert (folders.output / "DOE.result.json").is_file()
    assert "DOE" not in json.dumps(recorder.events)
    # Killed before the move: found, not made again.
    (folders.input / "done" / "DOE").rename(folders.input / "working" / "DOE")
    recorder.events.clear()
    folders.look(1)
    assert recorder.names() == ["sent", "passed-by"]
    # Killed while the series was written: made again, the same files.
    (folders.input / "done" / "DOE").rename(folders.input / "working" / "DOE")
    expected = {path: path.read_bytes() for path in sidecar.with_suffix("").iterdir()}
    sidecar.unlink()
    first, second, *_ = expected
    first.unlink()
    second.rename(second.with_name(f".0123abcd.tmp.{second.name}"))
    folders.look(1)
    assert {path: path.read_bytes() for path in sidecar.with_suffix("").iterdir()} == expected
    assert sidecar.is_file()


def test_a_folder_that_still_fills_is_left(folders: Folders, tmp_path: Path) -> None:
    paths = dicoms.classic(tmp_path / "source")
    target = folders.input / "series"
    target.mkdir()
    for path in paths:
        shutil.copy(path, target)
        assert folders.look(1) == []
    assert [result.status for result in folders.look(1)] == ["enhanced"]


def test_one_file_of_many_frames_is_a_series(folders: Folders) -> None:
    dicoms.enhanced(folders.input / "scan.dcm")
    assert [result.status for result in folders.look()] == ["enhanced"]
    assert len(list((folders.output / "scan").rglob("*.dcm"))) == 1


def test_a_folder_without_dicom_fails(folders: Folders) -> None:
    (folders.input / "empty").mkdir()
    assert [result.status for result in folders.look()] == ["failed"]
    assert "no DICOM images" in folders.reason("empty")


def test_without_the_extra_a_dicom_item_says_what_to_install(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("lfmri_runtime.dicom", "lfmri_runtime.folder.series"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (folders.input / "scan.dcm").write_bytes(b"x")
    folders.look()
    assert "pip install 'lfmri[dicom]'" in folders.reason("scan.dcm")


# The surface


@pytest.fixture
def surface(folders: Folders) -> Iterator[FolderSurface]:
    folders.spool.close()
    surface = FolderSurface(folders.settings, folders.station)
    yield surface
    surface.stop()


def test_the_surface_enhances_until_it_is_stopped_and_finishes_what_it_has_begun(
    surface: FolderSurface, folders: Folders, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enhance, begun, gate = folders.station.enhance, threading.Event(), threading.Event()

    def slow(*arguments: Any, **named: Any) -> Enhanced:
        begun.set()
        assert gate.wait(DEADLINE)
        return enhance(*arguments, **named)

    monkeypatch.setattr(folders.station, "enhance", slow)
    surface.start()
    for name in ("a.nii.gz", "b.nii.gz"):
        folders.drop(scan, name)
    assert begun.wait(DEADLINE)
    stopper = threading.Thread(target=surface.stop)
    stopper.start()
    gate.set()
    stopper.join(DEADLINE)
    assert not stopper.is_alive()
    assert surface.trouble() is None
    states = sorted(path.split("/")[0] for path in tree(folders.input))
    assert states in (["b.nii.gz", "done"], ["a.nii.gz", "done"])
    Spool(folders.input, folders.output, layout="plain").close()


def test_a_surface_whose_folder_is_gone_is_in_trouble(surface: FolderSurface, folders: Folders) -> None:
    surface.start()
    shutil.rmtree(folders.input)
    wait_for(surface.trouble)
    assert "No such file" in str(surface.trouble())


def refuses(monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, name: str) -> None:
    """Let a method of one path be refused, as to another user: the tests may run as root."""
    real = getattr(owner, method)

    def denied(path: Any, *arguments: Any, **named: Any) -> Any:
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(owner, method, denied)


@pytest.mark.parametrize(
    ("owner", "method", "said"),
    [
        (Path, "rename", "an item cannot be moved (Permission denied); check its rights"),
        (os, "scandir", "an item cannot be read (Permission denied); check its rights"),
    ],
)
def test_another_users_folder_is_said_once_and_holds_up_no_other(
    folders: Folders,
    station: Station,
    scan: Path,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    method: str,
    said: str,
) -> None:
    (folders.input / "DOE").mkdir()
    (folders.input / "DOE" / "1.dcm").write_bytes(b"x")
    os.utime(folders.input / "DOE" / "1.dcm", (1e9, 1e9))
    os.utime(folders.input / "DOE", (1e9, 1e9))  # the older one comes first
    refuses(monkeypatch, owner, method, "DOE")
    folders.drop(scan)
    with pytest.raises(TryAgainLater, match=re.escape(said)):
        folders.look()  # twice, as `watch --once` does
    assert "done/scan.nii.gz" in tree(folders.input)
    recorder.events.clear()
    folders.spool.close()
    surface = FolderSurface(folders.settings, station)
    folders.drop(scan, "next.nii.gz")
    surface.start()
    wait_for(lambda: {"sent", "delayed"} <= set(recorder.names()) or surface.trouble())
    time.sleep(5 * folders.settings.folder.poll_seconds)
    assert surface.trouble() is None
    surface.stop()
    monkeypatch.undo()
    assert tree(folders.input) == {"DOE/1.dcm", "done/scan.nii.gz", "done/next.nii.gz"}
    assert [fields["reason"] for event, fields in recorder.events if event == "delayed"] == [said]


def test_a_disk_that_is_short_is_said_once(
    folders: Folders, station: Station, scan: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders.spool.close()
    surface = FolderSurface(folders.settings, station)
    folders.drop(scan)
    looks: list[Path] = []

    def count(folder: Path, least: int) -> str | None:
        looks.append(folder)
        return f"{len(looks)} MiB free" if len(looks) < 4 else None

    monkeypatch.setattr("lfmri_runtime.folder.watching.shortage", count)
    surface.start()
    wait_for(lambda: "sent" in recorder.names())
    surface.stop()
    assert recorder.names() == ["delayed", "received", "enhanced", "sent"]


def test_a_delay_that_the_audit_log_cannot_hold_ends_nothing(
    folders: Folders, station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Recorder):
        def record(self, event: str, fields: dict[str, Any]) -> None:
            super().record(event, fields)
            raise TryAgainLater("No space left on device")

    def delays(watcher: Watcher, stopping: Callable[[], bool]) -> None:
        looks.append(1)
        raise TryAgainLater("disk full")

    looks: list[int] = []
    full = Full()
    station.journal = Journal([full])
    monkeypatch.setattr(Watcher, "look", delays)
    folders.spool.close()
    surface = FolderSurface(folders.settings, station)
    surface.start()
    wait_for(lambda: len(looks) > 2 or surface.trouble())
    surface.stop()
    assert surface.trouble() is None
    assert full.names() == ["delayed"]


def test_a_folder_without_an_output_is_refused(folders: Folders, station: Station) -> None:
    settings = replace(folders.settings, folder=replace(folders.settings.folder, output=""))
    with pytest.raises(UsageError, match=r"folder.output is empty"):
        FolderSurface(settings, station)


# Killed


def test_after_any_kill_every_scan_is_enhanced_exactly_once(
    tmp_path: Path, make_bundle: MakeBundle, make_nifti: MakeNifti, shared: Station
) -> None:
    scans, kills = 50, 20
    rng = random.Random(17)
    source, target, audit = tmp_path / "in", tmp_path / "out", tmp_path / "audit.jsonl"
    source.mkdir()
    config = tmp_path / "lfmri.toml"
    config.write_text(
        f'[folder]\ninput = "{source}"\noutput = "{target}"\npoll_seconds = 0.01\ngrid = "input"\n'
        f'[model]\nbackend = "onnxruntime"\nbundle = "{shared.enhancer.bundle.path}"\nthreads = 1\nwarm_side = 8\n'
        f'[audit]\npath = "{audit}"\n'
    )
    data = np.random.default_rng(3).random((scans, 16, 16, 6), np.float32)
    sums = {}
    for number, voxels in enumerate(data):
        path = make_nifti(f"{number}.nii", data=voxels * 900, dtype=np.float32)
        sums[path.name] = sha256_file(path)
        path.rename(source / path.name)

    def run(number: int) -> int:
        """Start a watcher, and end it by a signal at some moment of its first scans."""
        before = audit.stat().st_size if audit.exists() else 0
        process = subprocess.Popen(
            [sys.executable, "-m", "lfmri", "watch", "--config", config],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
        )
        done, moment = rng.randrange(3), rng.uniform(0.0, 0.04)

        def far_enough() -> bool:
            log = audit.read_bytes()[before:] if audit.exists() else b""
            none_left = b'"ready"' in log and not any(source.glob("*.nii"))
            return none_left or (b'"received"' in log and log.count(b'"sent"') >= done)

        wait_for(far_enough)
        time.sleep(moment)
        process.send_signal(number)
        return process.wait(DEADLINE)

    half_done = 0
    for _ in range(kills):
        assert run(signal.SIGKILL) == -signal.SIGKILL
        half_done += any((source / "working").iterdir())
        lying = sorted(
            path.name for folder in (source, source / "working", source / "done") for path in folder.glob("*.nii")
        )
        assert lying == sorted(sums), "none is lost or doubled"
    assert half_done >= kills // 4, "kills must hit scans"
    assert run(signal.SIGTERM) == 0
    assert not any((source / "working").iterdir()), "the current scan is finished"
    subprocess.run(
        [sys.executable, "-m", "lfmri", "watch", "--once", "--config", config], check=True, capture_output=True
    )

    stems = [name.removesuffix(".nii") for name in sums]
    assert tree(source) == {f"done/{name}" for name in sums}
    assert tree(target) == {f"{stem}{end}" for stem in stems for end in (".nii", ".json", ".result.json")}
    for name, source_sum in sums.items():
        original, document = source / "done" / name, read_sidecar(target / name)
        assert sha256_file(original) == source_sum
        assert document is not None
        assert document["input"]["sha256"] == source_sum
        read = read_scan(original)
        expected = shared.enhancer.enhance(read.data, read.affine, grid="input")
        np.testing.assert_array_equal(read_scan(target / name).data, expected.mean)
