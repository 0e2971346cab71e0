"""The DICOM node as a process among real peers: dcmtk sends, Orthanc receives, validators judge, outages come."""

import itertools
import json
import random
import subprocess
import threading
import time
import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pynetdicom
import pytest
from pydicom.dataset import Dataset

from lfmri_runtime.dicom.series import group_files

from .bundles import write_bundle
from .dicom_nodes import ARCHIVE, CONSOLE, NODE, Archive, Node, associate, free_port, send, wait_until
from .dicoms import SECRETS, SERIES, classic, require_program

SLICES = 36


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "bundle")


def series_files(folder: Path, number: int, *, shape: tuple[int, int, int] = (20, 26, SLICES)) -> list[Path]:
    """One of several series of one study."""

    def change(ds: Dataset, k: int) -> None:
        ds.SeriesInstanceUID = f"{SERIES}.{number}"
        ds.SOPInstanceUID = f"{SERIES}.{number}.{k + 1}"
        ds.SeriesNumber = number

    return classic(folder, change=change, shape=shape)


def read(paths: list[Path]) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in paths]


# ---- among real peers


class Island:
    """A network of its own, with nothing but loopback: Orthanc cannot be told to listen there alone."""

    def __enter__(self) -> "Island":
        self._holder = subprocess.Popen(
            ["unshare", "-n", "bash", "-c", "ip link set lo up && echo up && exec sleep infinity"],
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"up\n"
        self.prefix = ("nsenter", "-t", str(self._holder.pid), "-n")
        return self

    def __exit__(self, *_: Any) -> None:
        self._holder.kill()
        self._holder.wait()
        self._holder.stdout.close()  # type: ignore[union-attr]

    def run(self, *command: str | Path) -> str:
        done = subprocess.run([*self.prefix, *map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


class Orthanc:
    """Orthanc on an island, asked by its REST interface."""

    DICOM, HTTP = 4242, 8042

    def __init__(self, folder: Path, island: Island) -> None:
        self._island = island
        self._config = folder / "orthanc.json"
        settings = {
            "DicomAet": ARCHIVE, "DicomPort": self.DICOM, "DicomCheckCalledAet": True, "HttpPort": self.HTTP,
            "AuthenticationEnabled": False, "RemoteAccessAllowed": False, "StorageDirectory": str(folder / "orthanc"),
        }  # fmt: skip
        self._config.write_text(json.dumps(settings))

    def __enter__(self) -> "Orthanc":
        self._process = subprocess.Popen(
            [*self._island.prefix, "Orthanc", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: self._ask("statistics"), "answer from Orthanc")
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.terminate()
        self._process.wait()

    def _ask(self, path: str) -> bytes:
        script = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:{self.HTTP}/{path}').read().hex())"
        done = subprocess.run(
            [*self._island.prefix, "python3", "-c", script], capture_output=True, text=True, check=False
        )
        return bytes.fromhex(done.stdout)

    def instances(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self._ask("instances?expand"))
        return found

    def count(self) -> int:
        return int(json.loads(self._ask("statistics"))["CountInstances"])

    def fetch(self, folder: Path) -> dict[str, list[Path]]:
        """All instances as files by series."""
        (study,) = json.loads(self._ask("studies"))
        with zipfile.ZipFile(BytesIO(self._ask(f"studies/{study}/archive"))) as archive:
            archive.extractall(folder)
        return group_files(sorted(folder.rglob("*.dcm")))


def test_two_series_from_dcmtk_through_the_node_to_orthanc(tmp_path: Path, bundle: Path) -> None:
    for program in ("storescu", "dcmsend", "echoscu", "Orthanc", "dciodvfy", "dcentvfy", "dcm2niix"):
        require_program(program)
    originals = [series_files(tmp_path / f"original-{number}", number) for number in (1, 2)]
    with Island() as island, Orthanc(tmp_path, island) as orthanc:
        node = Node(tmp_path / "node", bundle, orthanc.DICOM, prefix=island.prefix)
        place = ("-aet", CONSOLE, "-aec", NODE, "127.0.0.1", str(node.port))
        with node:
            island.run("echoscu", *place)
            island.run("env", "TCP_NODELAY=1", "storescu", *place, *originals[0])
            island.run("env", "TCP_NODELAY=1", "dcmsend", *place, *originals[1])
            wait_until(lambda: orthanc.count() == 2 * SLICES, "72 derived instances")
            uids = {instance["MainDicomTags"]["SOPInstanceUID"] for instance in orthanc.instances()}
            island.run("env", "TCP_NODELAY=1", "dcmsend", *place, *originals[0])
            wait_until(lambda: len(node.events("sent")) == 3, "third delivery")
            assert {i["MainDicomTags"]["SOPInstanceUID"] for i in orthanc.instances()} == uids
            assert len(uids) == orthanc.count() == 2 * SLICES
            derived = orthanc.fetch(tmp_path / "derived")
            assert node.stop() == ""
    assert [len(paths) for paths in derived.values()] == [SLICES, SLICES]
    files = [*itertools.chain(*derived.values())]
    for path in files:
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False).stderr
        assert "Error" not in said, said
    together = subprocess.run(
        ["dcentvfy", *files, *itertools.chain(*originals)], capture_output=True, text=True, check=False
    )
    assert together.stdout + together.stderr == ""
    assert [geometry(paths[0].parent) for paths in derived.values()] == [geometry(originals[0][0].parent)] * 2
    log = node.audit.read_text()
    assert not [secret for secret in SECRETS if secret in log]


def geometry(folder: Path) -> list[float]:
    """Shape and affine as dcm2niix makes them."""
    import nibabel

    with_name = ["dcm2niix", "-b", "n", "-z", "n", "-f", "scan", "-o", str(folder), str(folder)]
    subprocess.run(with_name, check=True, capture_output=True)
    image = nibabel.load(folder / "scan.nii")
    return [*image.shape, *np.round(image.affine, 4).ravel()]


# ---- outages


class Console(threading.Thread):
    """Sends instances one by one, each until it is acknowledged, whatever becomes of the node."""

    def __init__(self, port: int, datasets: list[Dataset]) -> None:
        super().__init__(daemon=True)
        self._port, self._datasets = port, datasets
        self.sent = 0

    def run(self) -> None:
        association = None
        for dataset in self._datasets:
            acknowledged = False
            while not acknowledged:
                if association is None or not association.is_established:
                    time.sleep(0.02)
                    association = associate(self._port, patience=1.0)
                if association.is_established:
                    acknowledged = association.send_c_store(dataset).get("Status") == 0x0000
            self.sent += 1
        association.release()


def test_killed_at_twenty_moments_no_series_is_lost_or_enhanced_twice(tmp_path: Path, bundle: Path) -> None:
    # Four slices, as few as are enhanced: a series that a kill has cut in two is passed by, and joined later.
    paths = [series_files(tmp_path / str(n), n, shape=(16, 16, 4)) for n in range(50)]
    moments = random.Random(50)
    with Archive() as archive:
        node = Node(tmp_path / "node", bundle, archive.port, quiet=0.3)
        console = Console(node.port, read([path for series in paths for path in series]))
        console.start()
        for _ in range(20):
            node.start()
            with pytest.raises(subprocess.TimeoutExpired):
                node.process.wait(moments.uniform(0.0, 1.5))
            node.kill()
        with node:
            wait_until(lambda: console.sent == 200, "end of sending")
            wait_until(lambda: len(node.state("done")) == 50, "fifty series done")
            others = ("incoming", "working", "outbox", "passed-by", "failed", "quarantine", "temporary")
            wait_until(lambda: not any(map(node.state, others)), "empty spool")
            node.stop()
        queued = Counter(event["source"] for event in node.events("queued"))
        got = Counter(archive.uids())
    derived: dict[str, set[str]] = {}
    for uid, _, content in archive.got:
        dataset = pydicom.dcmread(BytesIO(content), force=True)
        derived.setdefault(dataset.SourceImageSequence[0].ReferencedSOPInstanceUID, set()).add(uid)
    assert len(derived) == 200
    assert all(len(uids) == 1 for uids in derived.values())
    assert set(queued.values()) == {1}
    # Between an acknowledgement and its record lies a moment; only there may an object leave again.
    assert sum(count - 1 for count in got.values()) <= 20


def test_while_the_destination_is_down_the_outbox_keeps_and_then_delivers(tmp_path: Path, bundle: Path) -> None:
    paths = [series_files(tmp_path / str(n), n, shape=(16, 16, 4)) for n in range(3)]
    port = free_port()
    node = Node(tmp_path / "node", bundle, port, settings="retries = 1")
    with node:
        assert send(node.port, read([path for series in paths for path in series])) == [0] * 12
        wait_until(lambda: len(node.state("outbox")) == 3, "three jobs in the outbox")
        wait_until(lambda: node.events("delayed"), "word of the outage")
        node.stop()
    with node, Archive(port=port) as archive:
        wait_until(lambda: len(node.events("sent")) == 3, "delivery")
        order = [event["source"] for event in node.events("queued")]
        assert [event["source"] for event in node.events("sent")] == order
        assert len(set(archive.uids())) == len(archive.uids()) == 12
        assert node.state("outbox") == node.state("quarantine") == []


def test_sigterm_finishes_the_series_in_work_and_leaves_the_others_in_the_spool(tmp_path: Path, bundle: Path) -> None:
    paths = [series_files(tmp_path / str(n), n, shape=(16, 16, 4)) for n in range(4)]
    with Archive() as archive:
        node = Node(tmp_path / "node", bundle, archive.port)
        with node:
            assert send(node.port, read([path for series in paths for path in series])) == [0] * 16
            wait_until(lambda: node.state("working"), "a series in work")
            assert node.stop() == ""
            finished = len(node.events("queued"))
            assert 1 <= finished == len(node.state("outbox")) + len(node.state("done"))
            assert node.state("working") == []
            assert finished + len(node.state("incoming")) == 4
        with node:
            wait_until(lambda: len(node.state("done")) == 4, "the rest")
            node.stop()
    assert len(set(archive.uids())) == len(archive.uids()) == 16


# ---- bad traffic


def mutated(rng: random.Random, content: bytes) -> bytes:
    """An encoded data set with one or some of: bytes changed, a piece cut out, doubled, or the end cut off."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(changed))
        kind = rng.randrange(6)
        if kind < 3:  # a byte, among the headers more often than in the pixels
            changed[rng.randrange(min(len(changed), 1500))] = rng.randrange(256)
        elif kind == 3:  # a length or value that lies
            changed[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"])
        elif kind == 4:
            del changed[place : place + rng.randrange(64)]
        else:
            changed[place:place] = changed[place : place + rng.randrange(64)]
        if len(changed) < 16:
            break
    return bytes(changed)


def test_a_thousand_mutated_instances_and_then_a_good_series(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(1000)
    good, bad = (read(series_files(tmp_path / str(n), n, shape=(16, 16, 4))) for n in (1, 2))
    encode = pynetdicom.association.encode
    with Archive() as archive, Node(tmp_path / "node", bundle, archive.port) as node:
        with monkeypatch.context() as patch:
            patch.setattr("pynetdicom.association.encode", lambda *how: mutated(rng, encode(*how)))
            answers = Counter(send(node.port, [rng.choice(bad) for _ in range(1000)]))
        assert answers.keys() == {0x0000, 0xC000}
        assert min(answers.values()) > 20
        assert len(node.events("refused")) >= answers[0xC000]
        assert send(node.port, good) == [0] * 4
        wait_until(lambda: [e for e in node.events("sent") if e["source"] == f"{SERIES}.1"], "the good series")
        wait_until(lambda: not node.state("incoming") + node.state("working"), "end of all series")
        for name in ("failed", "passed-by"):
            assert all((node.spool / name / series / "reason.txt").read_text() for series in node.state(name))
        assert node.stop() == ""
    assert not [secret for secret in SECRETS if secret in node.audit.read_text()]
