"""The DICOM node's spool and its senders: states, late instances, order, refusals and destinations that come and go."""

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydicom
import pytest
from pydicom.uid import EnhancedMRImageStorage

from lfmri.cli import run
from lfmri_runtime.console import interruptions
from lfmri_runtime.console.journal import Journal
from lfmri_runtime.console.settings import ConsoleSettings, DicomPeer, DicomSettings, ModelSettings, OutputSettings
from lfmri_runtime.console.station import Station
from lfmri_runtime.console.waits import LONGEST_WAIT_SECONDS, Refusals
from lfmri_runtime.dicomnode import spool as spools
from lfmri_runtime.dicomnode.loop import Loop
from lfmri_runtime.dicomnode.sending import Sender, folder_of, keep_answers
from lfmri_runtime.dicomnode.spool import INTERRUPTIONS, KEEP_SECONDS, Spool, key
from lfmri_runtime.dicomnode.working import Worker
from lfmri_runtime.errors import TryAgainLater, UsageError

from .bundles import write_bundle
from .dicom_nodes import ARCHIVE, Archive, free_port, wait_until
from .dicoms import SERIES, classic, enhanced
from .test_dicom_limits import Events

SMALL = (16, 16, 4)


def destination(port: int, title: str = ARCHIVE) -> DicomPeer:
    return DicomPeer(title=title, address="127.0.0.1", port=port)


class Bench:
    """A spool, a worker and senders, moved by hand: no threads, no network in."""

    def __init__(self, root: Path, *ports: int, label: str = "enhanced", **settings: Any) -> None:
        self.events = Events()
        self.journal = Journal([self.events])
        dicom = DicomSettings(
            **{"quiet_seconds": 1e-6, "retry_seconds": 1e-3, **settings},
            destinations=tuple(destination(port) for port in ports),
        )
        self.names = [folder_of(peer) for peer in dicom.destinations]
        self.spool = Spool(root / "spool", destinations=self.names, least_free_mib=0)
        self.spool.begin()
        model = ModelSettings(bundle=str(root / "bundle"), threads=1)
        if not (root / "bundle").exists():
            write_bundle(root / "bundle")
        self.settings = ConsoleSettings(model=model, dicom=dicom, output=OutputSettings(label=label))
        self.station = Station(model, self.journal)
        self.worker = Worker(self.settings, self.spool, self.station, self.journal)
        self.senders = [Sender(peer, dicom, self.spool, self.journal, tls=None) for peer in dicom.destinations]

    def receive(self, paths: list[Path], series: str = SERIES) -> None:
        for path in paths:
            copy = self.spool.temporary()
            copy.write_bytes(path.read_bytes())
            uid = str(pydicom.dcmread(path).SOPInstanceUID)
            self.spool.accept(copy, series=key(series), instance=key(uid))

    def work(self, *, hurry: bool = True) -> None:
        time.sleep(1e-3)
        for refusals in self.worker._waits.values() if hurry else ():
            refusals.due = 0.0
        self.worker._round()

    def send(self, *, rounds: int = 1) -> None:
        for _ in range(rounds):
            for sender in self.senders:
                sender._outage.due = 0.0
                for refusals in sender._refusals.values():
                    refusals.due = 0.0
                sender._round()

    def state(self, name: str) -> list[str]:
        return sorted(path.name for path in (self.spool.root / name).iterdir())

    def close(self) -> None:
        self.station.close()
        self.spool.close()


MakeBench = Callable[..., Bench]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeBench]:
    benches: list[Bench] = []

    def make_bench(*ports: int, **settings: Any) -> Bench:
        while benches:
            benches.pop().close()
        benches.append(Bench(tmp_path, *ports, **settings))
        return benches[-1]

    yield make_bench
    for bench in benches:
        bench.close()


def slices(folder: Path, number: int = 0, *, shape: tuple[int, int, int] = SMALL, **values: Any) -> list[Path]:
    def change(ds: pydicom.Dataset, k: int) -> None:
        ds.SeriesInstanceUID = f"{SERIES}.{number}"
        ds.SOPInstanceUID = f"{SERIES}.{number}.{k + 1}"
        for name, value in values.items():
            setattr(ds, name, value)

    return sorted(classic(folder / str(number), change=change, shape=shape))


# ---- states


def test_a_series_is_one_folder_that_moves(tmp_path: Path, make: MakeBench) -> None:
    with Archive() as first, Archive() as second:
        bench = make(first.port, second.port)
        bench.receive(slices(tmp_path))
        assert bench.state("incoming") == [key(SERIES)]
        bench.work()
        assert bench.state("incoming") == bench.state("working") == []
        (job,) = bench.state("outbox")
        assert bench.state(f"outbox/{job}/to") == sorted(bench.names)
        bench.senders[0]._round()
        assert (len(first.got), len(second.got)) == (4, 0)
        assert bench.state("outbox") == [job]
        bench.senders[1]._round()
        assert first.uids() == second.uids()
        assert bench.state("outbox") == []
        assert bench.state("done") == [key(SERIES)]
    seconds = [name for event in bench.events.all for name in event[1]["seconds"]]
    assert seconds == [
        "receive",
        "read",
        "wait",
        "prepare",
        "network",
        "loop",
        "check",
        "restore",
        "write",
        "send",
        "send",
    ]
    assert {fields["source"] for _, fields in bench.events.all} == {f"{SERIES}.0"}


def test_a_series_ends_when_nothing_has_come_for_a_while(tmp_path: Path, make: MakeBench) -> None:
    port = free_port()
    bench = make(port, quiet_seconds=1000.0)
    paths = slices(tmp_path)

    def age() -> None:
        bench.spool._arrivals[key(SERIES)].last -= 1001.0

    bench.receive(paths[:3])
    age()
    bench.receive(paths[3:])  # which begins the wait anew, as a start does
    bench.work()
    assert bench.state("incoming") == [key(SERIES)]
    age()
    bench.spool.begin()
    bench.work()
    assert bench.state("incoming") == [key(SERIES)]
    age()
    bench.work()
    assert bench.state("incoming") == []
    assert len(bench.state("outbox")) == 1


def test_a_series_sent_again_leaves_again_as_the_same_objects(tmp_path: Path, make: MakeBench) -> None:
    paths = slices(tmp_path)
    with Archive() as archive:
        bench = make(archive.port)
        for _ in range(2):
            bench.receive(paths)
            bench.work()
            bench.send()
        assert archive.got[:4] == archive.got[4:]
        assert len(archive.got) == 8
        bench.receive(paths[1:3])  # their acknowledgement was lost
        bench.work()
        bench.send()
        assert len(archive.got) == 8
        assert bench.events.all[-1][0] == "passed-by"
        assert bench.state("working") == []


@pytest.mark.parametrize("state", ["done", "outbox", "passed-by"])
def test_instances_that_come_late_join_those_that_came_before(tmp_path: Path, make: MakeBench, state: str) -> None:
    paths = slices(tmp_path, shape=(16, 16, 6))
    by_place = sorted(paths, key=lambda path: pydicom.dcmread(path).SOPInstanceUID)
    early, late = (by_place[:2], by_place[2:]) if state == "passed-by" else (by_place[:4], by_place[4:])
    with Archive() as archive:
        bench = make(archive.port)
        bench.receive(early)
        bench.work()
        if state == "done":
            bench.send()
        assert len(bench.state(state)) == 1
        bench.receive(late)
        bench.work()
        bench.send()
        assert bench.state("outbox") == bench.state("passed-by") == bench.state("failed") == []
        assert len(list((bench.spool.root / "done" / key(SERIES)).glob("*.dcm"))) == 6
        counts = [fields["instances"] for fields in bench.events.of("queued")]
        assert counts == ([6] if state == "passed-by" else [4, 6])
        assert len(set(archive.uids())) == sum(counts)


def test_why_a_series_rests_stands_beside_it(tmp_path: Path, make: MakeBench) -> None:
    bench = make(free_port())
    bench.receive(slices(tmp_path, 1, ImageType=["ORIGINAL", "PRIMARY", "P", "ND"]), "phase")
    bench.receive(slices(tmp_path, 2, Modality="CT"), "ct")
    bench.receive(slices(tmp_path, 3, PixelData=b"\0\0"), "broken")
    bench.receive(slices(tmp_path, 4), "good")
    bench.work()
    assert bench.state("passed-by") == sorted([key("phase"), key("ct")])
    assert bench.state("failed") == [key("broken")]
    assert len(bench.state("outbox")) == 1
    assert (bench.spool.root / "passed-by" / key("ct") / "reason.txt").read_text() == "not MR\n"
    assert "SECRET" not in str(bench.events.all)


def test_an_enhanced_mr_file_leaves_as_one(tmp_path: Path, make: MakeBench) -> None:
    bench = make(free_port())
    bench.receive([enhanced(tmp_path / "enhanced.dcm")])
    bench.work()
    (path,) = bench.spool.waiting(bench.names[0])
    assert pydicom.dcmread(path).SOPClassUID == EnhancedMRImageStorage


def test_what_we_made_is_passed_by(tmp_path: Path, make: MakeBench) -> None:
    bench = make(free_port())
    bench.receive(slices(tmp_path))
    bench.work()
    bench.receive(bench.spool.waiting(bench.names[0]), "derived")
    bench.work()
    assert bench.state("passed-by") == [key("derived")]
    assert "enhanced already" in bench.events.of("passed-by")[0]["reason"]


def test_a_fault_in_one_series_stops_no_other(tmp_path: Path, make: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make(free_port())
    bench.receive(slices(tmp_path))
    for error, word in ((ZeroDivisionError("DOE"), "please report it"), (MemoryError(), "too large")):

        def fail(*_: Any, error: BaseException = error, **__: Any) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("lfmri_runtime.dicomnode.working.read_series", fail)
            bench.work()
        assert word in bench.events.of("failed")[-1]["reason"]
        bench.receive(slices(tmp_path))
    bench.work()
    assert bench.state("failed") == []
    assert len(bench.state("outbox")) == 1
    assert "DOE" not in str(bench.events.all)


def test_a_full_disk_leaves_the_series_where_it_is(
    tmp_path: Path, make: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise TryAgainLater("disk full")

    bench = make(free_port())
    bench.receive(slices(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("lfmri_runtime.dicomnode.working.write_derived", full)
        with pytest.raises(TryAgainLater):
            bench.work()
    assert bench.state("working") == [key(SERIES)]
    bench.work()
    assert len(bench.state("outbox")) == 1
    assert bench.state("temporary") == []


def test_a_series_that_takes_processes_down_is_given_up(tmp_path: Path, make: MakeBench) -> None:
    port = free_port()
    bench = make(port)
    bench.receive(slices(tmp_path))
    time.sleep(1e-3)
    bench.spool.claim(key(SERIES))
    for _ in range(interruptions.MOST):
        interruptions.begin(bench.spool.working()[0] / INTERRUPTIONS)  # and killed in the midst of it
        bench = make(port)
    bench.work()
    assert bench.state("failed") == [key(SERIES)]
    assert "processes ended" in bench.events.of("failed")[0]["reason"]


def test_what_ends_otherwise_counts_against_no_series(
    tmp_path: Path, make: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        (marks,) = bench.spool.working()[0].glob("interruptions")
        assert marks.stat().st_size == 1
        raise TryAgainLater("disk full")

    port = free_port()
    bench = make(port)
    bench.receive(slices(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("lfmri_runtime.dicomnode.working.read_series", full)
        for _ in range(interruptions.MOST + 1):
            with pytest.raises(TryAgainLater):
                bench.work()
            bench = make(port)  # whose port is taken, and which ends at once
    bench.work()
    assert bench.state("failed") == []
    assert len(bench.state("outbox")) == 1


def test_a_series_on_which_the_device_fails_again_and_again_is_given_up(
    tmp_path: Path, make: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise TryAgainLater("the GPU failed")

    port = free_port()
    bench = make(port)
    bench.receive(slices(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(Station, "enhance", fails)
        patch.setattr(Station, "trouble", lambda station: "failed on its device")
        for _ in range(interruptions.MOST):
            with pytest.raises(TryAgainLater):
                bench.work()
            bench = make(port)
    bench.work()
    assert bench.state("failed") == [key(SERIES)]


def test_a_series_for_which_there_is_no_memory_now_holds_up_no_other(
    tmp_path: Path, make: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    enhance = Station.enhance

    def small_only(station: Station, data: Any, *arguments: Any, **named: Any) -> Any:
        if data.shape[-1] > SMALL[-1]:
            raise TryAgainLater("too little free memory")
        return enhance(station, data, *arguments, **named)

    bench = make(free_port())
    large, other = (*SMALL[:2], SMALL[2] + 2), slices(tmp_path, 1)
    bench.receive(slices(tmp_path, 0, shape=large), "large")
    bench.receive(other, "small")
    with monkeypatch.context() as patch:
        patch.setattr(Station, "enhance", small_only)
        for _ in range(interruptions.MOST + 1):
            with pytest.raises(TryAgainLater, match="too little free memory"):
                bench.work()
        bench.receive(slices(tmp_path, 0, shape=large), "large")  # by an operator who has waited long enough
        bench.receive(slices(tmp_path, 2), "next")
        with pytest.raises(TryAgainLater, match="too little free memory"):
            bench.work()
    assert bench.state("working") == bench.state("incoming") == [key("large")]
    assert {name.split("-")[-1] for name in bench.state("outbox")} == {key("small"), key("next")}
    bench.work()
    bench.work()
    assert bench.state("working") == bench.state("incoming") == []


def test_a_series_that_never_fits_fills_no_journal(
    tmp_path: Path, make: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise TryAgainLater("too little free memory")

    bench = make(free_port())
    bench.receive(slices(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(Station, "enhance", never)
        tries = 0
        for number in range(50):
            try:
                bench.work(hurry=number == 25)
            except TryAgainLater:
                tries += 1
    assert tries == 2
    assert len(bench.events.of("received")) == 1
    assert bench.state("working") == [key(SERIES)]
    bench.work()
    bench.receive(slices(tmp_path))
    bench.work()
    assert len(bench.events.of("received")) == 2
    assert bench.worker._waits == {}


def test_a_series_that_somebody_removes_holds_up_no_other(tmp_path: Path, make: MakeBench) -> None:
    bench = make(free_port())
    for number, name in enumerate(("removed", "other")):
        bench.receive(slices(tmp_path, number), name)
    shutil.rmtree(bench.spool.root / "incoming" / key("removed"))
    bench.work()
    assert [name.split("-")[-1] for name in bench.state("outbox")] == [key("other")]
    bench.receive(slices(tmp_path, 0), "removed")
    bench.work()
    assert len(bench.state("outbox")) == 2


def test_what_another_user_left_in_the_outbox_does_not_refuse_the_spool(
    make: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_ours(folder: Path, doomed: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    bench = make(free_port())
    (bench.spool.root / "outbox" / "1-put-back" / "to" / bench.names[0]).mkdir(parents=True)
    monkeypatch.setattr(spools, "discard", not_ours)
    bench = make(free_port())
    assert bench.state("outbox") == ["1-put-back"]
    bench.send()


def test_room_is_made_though_the_full_disk_ends_every_round(
    tmp_path: Path, make: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise TryAgainLater("disk full")

    bench = make(free_port())
    bench.receive(slices(tmp_path, 1, Modality="CT"), "old")
    bench.work()
    assert bench.state("passed-by") == [key("old")]
    bench.receive(slices(tmp_path, 2))
    bench.worker._expired = -1e9
    monkeypatch.setattr(spools, "shortage", lambda *_: "short")
    monkeypatch.setattr("lfmri_runtime.dicomnode.working.read_series", full)
    with pytest.raises(TryAgainLater):
        bench.work()
    assert bench.state("passed-by") == []


def test_what_rests_is_removed_after_a_day_or_when_the_disk_is_short(
    tmp_path: Path, make: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make(free_port())
    for number, name in enumerate(("old", "new")):
        bench.receive(slices(tmp_path, number, Modality="CT"), name)
    bench.receive(slices(tmp_path, 3, PixelData=b"\0\0"), "broken")
    bench.work()
    for state, name in (("passed-by", "old"), ("failed", "broken")):
        os.utime(bench.spool.root / state / key(name), (0, time.time() - KEEP_SECONDS - 1))
    bench.spool.expire()
    assert bench.state("passed-by") == [key("new")]
    monkeypatch.setattr(spools, "shortage", lambda *_: "short")
    bench.spool.expire()
    assert bench.state("passed-by") == bench.state("temporary") == []
    assert bench.state("failed") == [key("broken")]


def test_a_spool_has_one_node(tmp_path: Path, make: MakeBench) -> None:
    make(free_port())
    with pytest.raises(TryAgainLater, match="another node's spool"):
        Spool(tmp_path / "spool", destinations=["A"], least_free_mib=0)


# ---- sending


def test_what_is_refused_waits_and_is_given_up_while_the_rest_goes_on(tmp_path: Path, make: MakeBench) -> None:
    refused: set[str] = set()
    with Archive(status=lambda uid: 0xC000 if uid in refused else 0x0000) as archive:
        bench = make(archive.port, retries=2)
        for number in (1, 2):
            bench.receive(slices(tmp_path, number), f"{number}")
            bench.work()
        bad = bench.spool.waiting(bench.names[0])[1]
        refused.add(str(pydicom.dcmread(bad).SOPInstanceUID))
        bench.send()
        assert len(archive.got) == 7
        assert [fields["source"] for fields in bench.events.of("sent")] == [f"{SERIES}.2"]
        assert bench.spool.waiting(bench.names[0]) == [bad]
        bench.send(rounds=2)
        assert bench.state("outbox") == []
        (job,) = (bench.spool.root / "quarantine" / bench.names[0]).iterdir()
        assert sorted(path.name for path in job.iterdir()) == ["00002.dcm", "job.json", "reason.txt"]
        assert (job / "reason.txt").read_text() == "answered C000, 3 times; expected 0000\n"
        assert len(bench.events.of("failed")) == 1
        assert len(set(archive.uids())) == 7
        assert [fields["instances"] for fields in bench.events.of("sent")] == [4, 3]
        # Put back as the documentation says.
        refused.clear()
        place = bench.spool.root / "outbox" / job.name / "to"
        place.mkdir(parents=True)
        job.rename(place / bench.names[0])
        bench.send()
        assert len(set(archive.uids())) == 8
        assert bench.state("outbox") == []
        assert len(list((bench.spool.root / "done" / key("1")).glob("*.dcm"))) == 4
        said = bench.events.of("sent")[-1]
        assert (said["source"], said["instances"]) == (f"{SERIES}.1", 1)


def test_nothing_is_said_to_be_sent_when_all_is_refused(tmp_path: Path, make: MakeBench) -> None:
    with Archive(status=lambda uid: 0xC000) as archive:
        bench = make(archive.port, retries=0)
        bench.receive(slices(tmp_path))
        bench.work()
        bench.send()
        assert bench.state("outbox") == []
        assert len(bench.events.of("failed")) == 4
        assert bench.events.of("sent") == []


def test_what_was_sent_is_counted_across_a_restart(tmp_path: Path, make: MakeBench) -> None:
    with Archive() as archive:
        bench = make(archive.port)
        bench.receive(slices(tmp_path))
        bench.work()
        bench.spool.sent(bench.spool.waiting(bench.names[0])[0], "B007")
        bench = make(archive.port)
        bench.send()
        (said,) = bench.events.of("sent")
        assert (said["instances"], said["warnings"]) == (4, ["B007"])


@pytest.mark.parametrize("warning", [0xB000, 0xB006, 0xB007])
def test_a_warning_means_stored(tmp_path: Path, make: MakeBench, warning: int) -> None:
    statuses = iter([warning])
    with Archive(status=lambda uid: next(statuses, 0x0000)) as archive:
        bench = make(archive.port, retries=0)
        bench.receive(slices(tmp_path))
        bench.work()
        bench.send()
        assert bench.state("quarantine") == bench.state("outbox") == []
        (said,) = bench.events.of("sent")
        assert (said["instances"], said["warnings"]) == (4, [f"{warning:04X}"])


def test_a_destination_without_room_is_waited_for(tmp_path: Path, make: MakeBench) -> None:
    statuses = [0x0000, 0xA700]
    asked: list[str] = []

    def status(uid: str) -> int:
        asked.append(uid)
        return statuses[min(len(asked), len(statuses)) - 1]

    with Archive(status=status) as archive:
        bench = make(archive.port, retries=0)
        bench.receive(slices(tmp_path))
        bench.work()
        waiting = bench.spool.waiting(bench.names[0])
        bench.send(rounds=3)
        assert len(asked) == 4  # nothing after the first object that has no room
        assert bench.spool.waiting(bench.names[0]) == waiting[1:]
        assert bench.senders[0]._outage.count == 3
        assert [fields["reason"] for fields in bench.events.of("delayed")] == ["answered A700: it has no room"]
        statuses[1] = 0x0000
        bench.send()
        assert bench.events.of("sent")[0]["instances"] == 4
        assert bench.senders[0]._outage.count == 0


def test_a_destination_that_is_down_costs_no_retries_and_gets_all_in_order(tmp_path: Path, make: MakeBench) -> None:
    port = free_port()
    bench = make(port, retries=0)
    for number in (1, 2, 3):
        bench.receive(slices(tmp_path, number), f"{number}")
        bench.work()
    waiting = bench.spool.waiting(bench.names[0])
    bench.send(rounds=3)
    assert bench.spool.waiting(bench.names[0]) == waiting
    assert [fields["reason"] for fields in bench.events.of("delayed")] == ["cannot be reached"]
    expected = [str(pydicom.dcmread(path).SOPInstanceUID) for path in waiting]
    with Archive(port=port) as archive:
        bench.send()
        assert archive.uids() == expected


def test_an_answer_is_kept_for_who_waits_for_it() -> None:
    answers = [(1, "answer")]
    dimse = SimpleNamespace(get_msg=lambda block: answers.pop())
    keep_answers(SimpleNamespace(assoc=SimpleNamespace(dimse=dimse)))
    assert dimse.get_msg() == dimse.get_msg(block=False) == (None, None)
    assert dimse.get_msg(block=True) == (1, "answer")


def test_waits_double_up_to_their_cap() -> None:
    refusals = Refusals()
    waits = []
    for _ in range(1100):  # days of outage; 2.0**1024 is no float
        refusals.add(5.0)
        waits.append(round(refusals.due - time.monotonic()))
    assert waits[:7] == [5, 10, 20, 40, 80, 160, LONGEST_WAIT_SECONDS]
    assert waits[-1] == LONGEST_WAIT_SECONDS


def test_what_waits_for_a_destination_that_is_gone_is_quarantined(tmp_path: Path, make: MakeBench) -> None:
    bench = make(free_port())
    bench.receive(slices(tmp_path))
    bench.work()
    (old,) = bench.names
    bench = make(free_port())
    for path in bench.spool.orphans():
        bench.spool.quarantine(path, "gone")
    assert bench.state("quarantine") == [old]
    assert bench.state("outbox") == []
    assert bench.state("done") == [key(SERIES)]


def test_folder_names_hold_nothing_that_a_path_would_mean() -> None:
    names = {folder_of(destination(port, title)) for port in (104, 105) for title in ("../../A", "/A", "A B")}
    assert len(names) == 6
    assert all("/" not in name and "." not in name for name in names)


# ---- threads, options


def test_a_thread_that_dies_says_so_and_what_passes_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfmri_runtime.dicomnode.loop.PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("threading.excepthook", lambda arguments: None)
    events = Events()
    errors: list[Exception] = [TryAgainLater("full"), TryAgainLater("full"), ValueError("DOE")]
    loop = Loop("worker", lambda: (_ for _ in ()).throw(errors.pop(0)), Journal([events]), pause=0.0)
    loop.start()
    assert wait_until(loop.trouble, "trouble") == "the thread worker has died (ValueError)"
    assert [fields["reason"] for fields in events.of("delayed")] == ["full"]


def test_a_delay_that_the_audit_log_cannot_hold_stops_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def record(self, event: str, fields: dict[str, Any]) -> None:
            raise TryAgainLater("No space left on device")

    def round_() -> None:
        rounds.append(1)
        raise TryAgainLater("full")

    monkeypatch.setattr("lfmri_runtime.dicomnode.loop.PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("threading.excepthook", lambda arguments: None)
    rounds: list[int] = []
    loop = Loop("worker", round_, Journal([Full()]), pause=0.0)
    loop.start()
    wait_until(lambda: len(rounds) > 2 or loop.trouble(), "third round")
    assert loop.trouble() is None
    loop.stop()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dicom", "127.0.0.1:11112"], "dicom.spool is empty"),
        (["--dicom", "0.0.0.0:11112", "--spool", "s"], "others can reach"),
        (["--dicom", "127.0.0.1:11112", "--spool", "s"], "dicom.destinations is empty"),
        (["--dicom", "127.0.0.1:11112", "--destination", "PACS"], "expected TITLE@HOST:PORT"),
        (["--dicom", "127.0.0.1:11112", "--destination", "PACS@host"], "ADDRESS:PORT"),
        (["--dicom", "127.0.0.1:11112", "--spool", "s", "--destination", "P@h:0"], "is 0; expected 1 to 65535"),
        (["--dicom", "127.0.0.1:11112", "--peer", "10.0.0.1"], "expected TITLE@ADDRESS"),
        (["--dicom", "127.0.0.1:11112", "--spool", "s", "--destination", "P@h:1", "--title", "X" * 17], "1 to 16"),
    ],
)
def test_options_that_cannot_be_are_refused(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["serve", "--bundle", str(write_bundle(tmp_path / "bundle")), *arguments]) == UsageError.exit_code
    assert message in " ".join(capsys.readouterr().err.split())
