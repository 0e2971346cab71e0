"""A day's load in small: `python benchmarks/console.py --scans 500`.

Starts `lfmri serve` with a folder, an MRD server and a DICOM node, sends the same scan through each surface again and
again, and prints, measured in one run on this machine:

- stages: p50 and p95 of the seconds of each stage, read from the audit log;
- memory: resident memory of the service against the number of scans, as a slope;
- shell: for MRD, the seconds of receiving, assembling, encoding and sending over those of the enhancement.

The scan is random on a grid of `--shape`; `--bundle` takes another model than the built-in one.
"""

import argparse
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np

ROOT = Path(__file__).parents[1]
#: The first scans fill caches and pools; memory is looked at after this share of them.
SETTLED = 0.2
#: Longest wait for one scan, seconds.
PATIENCE = 600.0


def example(name: str) -> ModuleType:
    """One of the files under docs/examples."""
    specification = importlib.util.spec_from_file_location(name, ROOT / "docs" / "examples" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool]) -> None:
    """Wait for the condition."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {PATIENCE:g} s in vain")
        time.sleep(0.005)


class Served:
    """A running service.

    Attributes:
        folder: everything of this run lies below it.
        ports: of mrd, dicom, health and the destination of DICOM.
    """

    def __init__(self, folder: Path, bundle: str) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("mrd", "dicom", "health", "destination")}
        for name in ("in", "out"):
            (folder / name).mkdir()
        (folder / "lfmri.toml").write_text(
            f'[model]\nbundle = "{bundle}"\n[audit]\npath = "{folder}/audit.jsonl"\n'
            f'[folder]\ninput = "{folder}/in"\noutput = "{folder}/out"\npoll_seconds = 0.05\n'
            f"[mrd]\nport = {self.ports['mrd']}\n[health]\nport = {self.ports['health']}\n"
            f'[dicom]\nport = {self.ports["dicom"]}\nspool = "{folder}/spool"\nquiet_seconds = 0.2\n'
            'peers = [{title = "BENCH", address = "127.0.0.1", port = 0}]\n'
            f'destinations = [{{title = "ARCHIVE", address = "127.0.0.1", port = {self.ports["destination"]}}}]\n'
        )
        command = [sys.executable, "-m", "lfmri", "serve", "--config", str(folder / "lfmri.toml")]
        self.process = subprocess.Popen(command)
        until(self._ready)

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise SystemExit("the service ended")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['health']}/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def memory(self) -> int:
        """Resident memory, bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def seconds(self, surface: str) -> dict[str, list[float]]:
        """Seconds of every stage of a surface's scans."""
        stages = defaultdict(list)
        for line in (self.folder / "audit.jsonl").read_text().splitlines():
            event = json.loads(line)
            if event.get("surface") == surface:
                for stage, value in event.get("seconds", {}).items():
                    stages[stage].append(value)
        return stages


def folder_sender(served: Served, scan: Path) -> Callable[[int], None]:
    """Drops the scan into the watched folder."""

    def send(number: int) -> None:
        shutil.copy(scan, served.folder / "in" / f".{number}.nii.gz")
        (served.folder / "in" / f".{number}.nii.gz").rename(served.folder / "in" / f"{number}.nii.gz")
        until((served.folder / "in" / "done" / f"{number}.nii.gz").exists)

    return send


def mrd_sender(served: Served, scan: Path) -> Callable[[int], None]:
    """Sends the scan by the example client."""
    client, target = example("mrd_send"), served.folder / "mrd.nii.gz"

    def send(_: int) -> None:
        client.send(scan, target, address=("127.0.0.1", served.ports["mrd"]), steps=1)

    return send


@contextmanager
def dicom_sender(served: Served, scan: Path) -> Iterator[Callable[[int], None]]:
    """Sends the scan as a series by C-STORE, and is the destination of the enhanced one."""
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
    from pynetdicom import AE, evt

    series = example("dicom_series")
    arrived: defaultdict[str, set[str]] = defaultdict(set)  # the objects of each series
    archive = AE("ARCHIVE")
    archive.add_supported_context(MRImageStorage, ExplicitVRLittleEndian)

    def at_once(event: evt.Event) -> None:
        # Without this every instance takes 40 ms longer: Nagle's algorithm meets delayed acknowledgements.
        event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def store(event: evt.Event) -> int:
        arrived[event.dataset.SeriesInstanceUID].add(event.dataset.SOPInstanceUID)
        return 0x0000

    address = ("127.0.0.1", served.ports["destination"])
    server = archive.start_server(address, block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    sender = AE("BENCH")
    sender.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)

    def whole(size: int) -> int:
        """Series of which so many objects have come; one that stalled on its way is enhanced in part first."""
        return sum(len(objects) >= size for objects in list(arrived.values()))

    def send(number: int) -> None:
        datasets = series.series_of(scan, uid=generate_uid(entropy_srcs=[str(served.folder), str(number)]))
        before = whole(len(datasets))
        handlers = [(evt.EVT_CONN_OPEN, at_once)]
        association = sender.associate("127.0.0.1", served.ports["dicom"], ae_title="LFMRI", evt_handlers=handlers)
        for dataset in datasets:
            status = association.send_c_store(dataset)
            if status.get("Status") != 0x0000:
                raise SystemExit(f"C-STORE: {status}")
        association.release()
        until(lambda: whole(len(datasets)) > before)

    yield send
    server.shutdown()


def measure(served: Served, surface: str, send: Callable[[int], None], scans: int) -> None:
    """Send, and print what it cost."""
    memory = []
    for number in range(scans):
        send(number)
        memory.append(served.memory())
    settled = int(scans * SETTLED)
    slope = float(np.polyfit(np.arange(settled, scans), memory[settled:], 1)[0]) if scans - settled > 1 else 0.0
    print(
        f"\n{surface}: {scans} scans; memory {memory[settled] / 2**20:.0f} MiB after {settled}, "
        f"{memory[-1] / 2**20:.0f} MiB at the end, slope {slope / 2**10:.2f} KiB a scan"
    )
    stages = served.seconds(surface)
    for stage, values in stages.items():
        p50, p95 = np.percentile(values, [50, 95])
        print(f"  {stage:10s} p50 {p50:8.4f} s   p95 {p95:8.4f} s")
    if surface == "mrd":
        shell = sum(sum(stages[stage]) for stage in ("receive", "assemble", "encode", "send"))
        print(f"  shell over enhancement: {shell / sum(stages['enhance']):.3f}")


def main() -> None:
    """Run what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=500)
    parser.add_argument("--surface", action="append", choices=["folder", "mrd", "dicom"])
    parser.add_argument("--shape", type=int, nargs=3, default=(48, 56, 10))
    parser.add_argument("--bundle", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = np.random.default_rng(0).gamma(2, 100, options.shape).astype(np.int16)
        scan = folder / "scan.nii.gz"
        nib.Nifti1Image(data, np.diag([1.6, 1.6, 5.0, 1.0])).to_filename(scan)
        served = Served(folder, options.bundle)
        for surface in options.surface or ("folder", "mrd", "dicom"):
            if surface == "dicom":
                with dicom_sender(served, scan) as send:
                    measure(served, surface, send, options.scans)
            else:
                measure(
                    served, surface, {"folder": folder_sender, "mrd": mrd_sender}[surface](served, scan), options.scans
                )
        served.process.terminate()
        if served.process.wait(PATIENCE) != 0:
            raise SystemExit("the service did not end well")


if __name__ == "__main__":
    main()
