"""What every console surface shares."""

import errno
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lfmri.cli import run
from lfmri_runtime.console import disk, service
from lfmri_runtime.console.configuration import read_settings, settings_from
from lfmri_runtime.console.health import HealthServer
from lfmri_runtime.console.journal import AuditLog, Journal
from lfmri_runtime.console.metrics import Metrics
from lfmri_runtime.console.service import Service
from lfmri_runtime.console.settings import ConsoleSettings, HealthSettings, ModelSettings
from lfmri_runtime.console.station import EnhanceOptions, Station
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.errors import BackendMissing, InputRefused, TryAgainLater, UsageError

from .bundles import MakeBundle
from .heads import scan_of

Get = Callable[[str], tuple[int, str]]


class Recorder:
    """A sink that keeps events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def record(self, event: str, fields: dict[str, Any]) -> None:
        self.events.append((event, fields))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def station(make_bundle: MakeBundle, recorder: Recorder) -> Iterator[Station]:
    station = Station(
        ModelSettings(backend="onnxruntime", bundle=str(make_bundle("noisy")), warm_side=16), Journal([recorder])
    )
    yield station
    station.close()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "lfmri.toml"
    path.write_text(text)
    return path


def test_what_a_configuration_leaves_out_has_its_default(tmp_path: Path) -> None:
    assert read_settings(write(tmp_path, "")) == ConsoleSettings()
    found = read_settings(
        write(tmp_path, '[mrd]\nport = 9002\n[[dicom.peers]]\ntitle = "A"\naddress = "b"\nport = 0\n')
    )
    assert (found.mrd.port, found.mrd.address) == (9002, "127.0.0.1")
    assert found.dicom.peers[0].title == "A"
    assert found.model == ConsoleSettings().model


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mrd = 3", "mrd is 3; expected an object"),
        ("[colour]", "the key 'colour' is not known"),
        ("[mrd]\ncolour = 1", "mrd: the key 'colour' is not known; expected address"),
        ('[mrd]\nport = "9002"', "mrd.port is '9002'; expected int"),
        ("[mrd]\nport = true", "mrd.port is True; expected int"),
        ("[mrd]\nport = 70000", "mrd.port is 70000"),
        ('[health]\nport = 1\naddress = "0.0.0.0"', "beyond_loopback"),
        ('[dicom]\nport = 1\nspool = "s"\naddress = "::"', "beyond_loopback"),
        ('[mrd]\nport = 1\naddress = "scanner"', "beyond_loopback"),
        ("[dicom]\nport = 1", "dicom.spool is empty"),
        ('[dicom]\nkey = "k"', "belong together"),
        ("[model]\nsamples = 0", "model.samples is 0; expected 1 to 1000"),
        ("[model]\nsteps = -3", "model.steps is -3; expected 0 to 1000"),
        ("[model]\nsteps = 5000", "model.steps is 5000"),
        ("[model]\nseed = -1", "model.seed is -1; expected 0 to 4294967295"),
        ("[model]\nseed = 4294967296", "model.seed is 4294967296"),
        ("[mrd]\ntimeout_seconds = 0", "mrd.timeout_seconds is 0"),
        ("[folder]\npoll_seconds = nan", "finite"),
        ('[folder]\nlayout = "deep"', "expected one of plain, bids"),
        ('[folder]\ngrid = "fine"', "expected one of isotropic, input"),
        ('[output]\nlabel = "' + "x" * 41 + '"', "1 to 40 printable ASCII"),
        ("[output]\nuncertainty = true", "model.samples of at least 2"),
        ('[[dicom.peers]]\ntitle = "A"', "'address' is missing"),
        ('[[dicom.destinations]]\ntitle = "A"\naddress = "b"\nport = 0', "'A' in dicom.destinations is 0; expected 1"),
        ('[[dicom.destinations]]\ntitle = "A"\naddress = "b"\nport = 70000', "is 70000; expected 1 to 65535"),
        ("[mrd", "is not TOML"),
        ("x = " + "[" * 5000, "is not TOML"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=r"lfmri.toml|expected") as caught:
        read_settings(write(tmp_path, text)).check()
    assert said in str(caught.value)


def test_a_configuration_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_settings(tmp_path / "none.toml")


def test_the_options_of_a_command_mend_its_configuration(
    tmp_path: Path, make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    dicom = '[dicom]\nport = 11112\naddress = "0.0.0.0"\n[mrd]\nport = 9002\naddress = "scanner"\n'
    model = f'[model]\nbackend = "onnxruntime"\nbundle = "{make_bundle()}"\n'
    serve = ["serve", "--config", str(write(tmp_path, dicom + model))]

    def said(*options: str) -> str:
        assert run([*serve, *options]) == UsageError.exit_code
        return " ".join(capsys.readouterr().err.split())

    assert "mrd.address" in said()
    assert "dicom.address" in said("--mrd", "127.0.0.1:9002")
    assert "dicom.spool is empty" in said("--beyond-loopback")
    assert "dicom.destinations is empty" in said("--beyond-loopback", "--spool", str(tmp_path / "spool"))
    assert "expected ADDRESS:PORT" in said("--mrd", "127.0.0.1:²")
    assert run(["watch", "--once", *serve[1:]]) == UsageError.exit_code


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_loopback_needs_no_permission(address: str) -> None:
    settings_from({"mrd": {"port": 9002, "address": address}}, where="here").check()


def test_other_addresses_need_permission() -> None:
    open_to_all = {"mrd": {"port": 9002, "address": "0.0.0.0"}, "network": {"beyond_loopback": True}}
    settings_from(open_to_all, where="here").check()


def test_the_audit_log_takes_whole_lines_from_many_threads(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "audit.jsonl"
    journal = Journal([AuditLog(path)])
    threads = [
        threading.Thread(target=lambda n=n: [journal.record("e", n=n, i=i, long="x" * 5000) for i in range(20)])
        for n in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((line["n"], line["i"]) for line in lines) == [(n, i) for n in range(5) for i in range(20)]
    assert {line["event"] for line in lines} == {"e"}
    assert path.stat().st_mode & 0o007 == 0
    AuditLog(path).record("later", {})
    assert len(path.read_text().splitlines()) == 101


def test_an_audit_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(TryAgainLater, match="audit log"):
        AuditLog(tmp_path)
    with pytest.raises(TryAgainLater, match="No space left"):
        AuditLog(Path("/dev/full")).record("e", {})


def test_half_a_line_takes_no_later_one_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    log.record("ready", {})
    write = os.write
    pieces = iter([20])

    def short(file: int, content: bytes) -> int:
        for most in pieces:
            return write(file, content[:most])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lfmri_runtime.console.journal.os.write", short)
        with pytest.raises(TryAgainLater, match="No space left"):
            log.record("sent", {"source": "1.2"})
    assert log.trouble() is None
    log.record("sent", {"source": "1.3"})
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["ready", "resumed", "sent"]


def fill(log: AuditLog) -> Callable[[], None]:
    """Let a log's disk be full; returns what frees some space."""
    kept, log._file = log._file, os.open("/dev/full", os.O_WRONLY)

    def free() -> None:
        os.close(log._file)
        log._file = kept

    return free


def test_what_one_sink_cannot_take_the_others_have(tmp_path: Path, recorder: Recorder) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    journal = Journal([log, recorder])
    free = fill(log)
    with pytest.raises(TryAgainLater, match="No space left"):
        journal.record("failed", reason="x")
    journal.tell("delayed", reason="x")
    assert [event for event, _ in recorder.events] == ["failed", "delayed"]
    free()


def test_events_become_metrics() -> None:
    metrics = Metrics()
    metrics.record("enhanced", {"surface": "mrd", "seconds": {"network": 2.0}})
    metrics.record("enhanced", {"surface": "mrd", "seconds": {"network": 0.02}})
    metrics.record("ready", {})
    text = metrics.render(ready=True).decode()
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["lfmri_events_total", ("event", "enhanced"), ("surface", "mrd")] == 2
    assert found["lfmri_events_total", ("event", "ready"), ("surface", "service")] == 1
    assert found["lfmri_stage_seconds_sum", ("stage", "network")] == pytest.approx(2.02)
    assert found["lfmri_stage_seconds_bucket", ("le", "0.03"), ("stage", "network")] == 1
    assert found["lfmri_ready",] == 1


def get_from(port: int) -> Get:
    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return get


def test_live_ready_and_metrics_answer_apart() -> None:
    reasons: dict[str, str | None] = {"live": None, "ready": "the model is being loaded"}
    server = HealthServer(
        HealthSettings(port=0), Metrics(), not_live=lambda: reasons["live"], not_ready=lambda: reasons["ready"]
    )
    get = get_from(server.port)
    assert get("/live") == (200, "yes\n")
    assert get("/ready") == (503, "the model is being loaded\n")
    assert "lfmri_ready 0.0" in get("/metrics")[1]
    reasons.update(live="dicom: a thread died", ready=None)
    assert get("/live") == (503, "dicom: a thread died\n")
    assert get("/ready") == (200, "yes\n")
    assert "lfmri_ready 1.0" in get("/metrics")[1]
    assert get("/other")[0] == 404
    with pytest.raises(TryAgainLater, match="in use"):
        HealthServer(HealthSettings(port=server.port), Metrics(), not_live=lambda: None, not_ready=lambda: None)
    server.close()
    with pytest.raises(urllib.error.URLError):
        get("/live")


def test_the_station_gives_what_the_enhancer_gives(station: Station, recorder: Recorder) -> None:
    data, affine = scan_of(np.diag([1.5, 1.2, 5.0, 1.0]))
    found = station.enhance(data, affine, surface="mrd", source="abc", options=EnhanceOptions(steps=2, seed=3))
    expected = Enhancer(station.enhancer.bundle).enhance(data, affine, steps=2, seed=3, grid="input")
    np.testing.assert_array_equal(found.mean, expected.mean)
    ((event, said),) = recorder.events
    assert event == "enhanced"
    assert (said["surface"], said["source"], said["steps"], said["seed"]) == ("mrd", "abc", 2, 3)
    assert said["bundle"] == station.enhancer.bundle.sha256
    assert {"wait", "network"} <= set(said["seconds"])


def test_options_left_out_are_the_configured_ones(make_bundle: MakeBundle, recorder: Recorder) -> None:
    settings = ModelSettings(backend="onnxruntime", bundle=str(make_bundle("noisy")), steps=2, samples=3, seed=9)
    station = Station(settings, Journal([recorder]))
    data, affine = scan_of(np.diag([1.5, 1.2, 5.0, 1.0]))
    enhanced = station.enhance(data, affine, surface="mrd", source="", options=EnhanceOptions(seed=0))
    station.close()
    assert [enhanced.report[name] for name in ("steps", "samples", "seed")] == [2, 3, 0]


def test_the_configured_back_end_runs_or_is_refused(make_bundle: MakeBundle) -> None:
    with pytest.raises(BackendMissing, match="tensorrt"):
        Station(ModelSettings(bundle=str(make_bundle()), backend="tensorrt", require=True), Journal())
    with pytest.raises(UsageError, match="--backend is 'abacus'"):
        Station(ModelSettings(bundle=str(make_bundle()), backend="abacus"), Journal())


@pytest.mark.parametrize("backend", ["auto", "tensorrt"])
def test_why_a_gpu_was_passed_over_is_said(make_bundle: MakeBundle, backend: str) -> None:
    station = Station(ModelSettings(bundle=str(make_bundle()), backend=backend), Journal())
    assert station.enhancer.step.name != "tensorrt"
    assert any(note.startswith("tensorrt (") for note in station.notes)
    assert any(note.startswith("asked for tensorrt") for note in station.enhancer.notes) == (backend == "tensorrt")
    station.close()


@pytest.mark.usefixtures("signals")
def test_a_back_end_that_refuses_to_be_warmed_up_ends_no_service(
    tmp_path: Path, make_bundle: MakeBundle, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(shape: tuple[int, ...]) -> None:
        raise InputRefused(f"slices of {shape}; make an engine with another --profile")

    model = {"backend": "onnxruntime", "bundle": str(make_bundle())}
    running = Service(settings_from({"model": model}, where="here"), sinks=[recorder])
    monkeypatch.setattr(running.station.enhancer.step, "warmup", refuse)
    running._stopping.set()
    running.run([Gate(tmp_path)])  # as at a signal
    ((_, ready), _) = recorder.events
    assert len(ready["notes"]) == 1
    assert "slices of (2, 1, 192, 192); make an engine" in ready["notes"][0]


def test_a_refused_scan_is_in_the_journal_and_the_next_one_works(station: Station, recorder: Recorder) -> None:
    data, affine = scan_of(np.diag([1.5, 1.2, 5.0, 1.0]))
    with pytest.raises(InputRefused):
        station.enhance(np.zeros_like(data), affine, surface="mrd", source="", options=EnhanceOptions())
    station.enhance(data, affine, surface="mrd", source="", options=EnhanceOptions())
    assert [event for event, _ in recorder.events] == ["refused", "enhanced"]
    assert "reason" in recorder.events[0][1]


def test_one_scan_runs_at_a_time_and_too_many_are_turned_away(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most, gate = 0, 0, threading.Event()
    enhance = station.enhancer.enhance

    def slow(*arguments: Any, **options: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        gate.wait(30)
        result = enhance(*arguments, **options)
        running -= 1
        return result

    monkeypatch.setattr(station.enhancer, "enhance", slow)
    monkeypatch.setattr(station, "_places", threading.BoundedSemaphore(3))
    data, affine = scan_of(np.diag([1.5, 1.2, 5.0, 1.0]))
    outcomes: list[str] = []

    def ask() -> None:
        try:
            station.enhance(data, affine, surface="mrd", source="", options=EnhanceOptions())
            outcomes.append("done")
        except TryAgainLater:
            outcomes.append("later")

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: outcomes.count("later") == 5)
    gate.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["done"] * 3 + ["later"] * 5
    assert most == 1


def test_a_closed_station_takes_nothing(station: Station) -> None:
    station.close()
    data, affine = scan_of(np.diag([1.5, 1.2, 5.0, 1.0]))
    with pytest.raises(TryAgainLater, match="stopping"):
        station.enhance(data, affine, surface="mrd", source="", options=EnhanceOptions())


def test_an_error_of_the_network_is_no_end_of_the_service(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("the inference failed")

    monkeypatch.setattr(station.enhancer, "enhance", fails)
    with pytest.raises(RuntimeError, match="the inference failed"):
        station.enhance(np.zeros((8, 8, 8), np.float32), np.eye(4), surface="mrd", source="", options=EnhanceOptions())


def test_the_watermark_says_how_much_is_missing(tmp_path: Path) -> None:
    assert disk.shortage(tmp_path, 0) is None
    assert "expected at least 1099511627776" in str(disk.shortage(tmp_path, 1 << 40))
    assert "No such file" in str(disk.shortage(tmp_path / "none", 0))


class Gate:
    """A surface whose state the test sets."""

    name = "gate"

    def __init__(self, folder: Path) -> None:
        self.folders = (folder,)
        self.why: str | None = None
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def trouble(self) -> str | None:
        return self.why

    def stop(self) -> None:
        self.calls.append("stop")


@pytest.fixture
def notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd would hear."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield listener


def serving(make_bundle: MakeBundle, **tables: Any) -> Service:
    model = {"backend": "onnxruntime", "bundle": str(make_bundle()), "warm_side": 8}
    return Service(settings_from({"model": model, **tables}, where="here"))


@pytest.fixture
def signals() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_a_service_tells_when_it_is_ready_and_ends_at_a_signal(
    tmp_path: Path, make_bundle: MakeBundle, notified: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "LOOK_SECONDS", 0.01)
    tables = {"audit": {"path": str(tmp_path / "audit.jsonl")}, "health": {"port": free_port()}}
    running, gate = serving(make_bundle, **tables), Gate(tmp_path)
    assert running.health_port is not None
    get = get_from(running.health_port)
    assert get("/ready") == (503, "the model is being loaded\n")
    heard: list[bytes] = []

    def watch() -> None:
        while b"WATCHDOG=1" not in heard:
            heard.append(notified.recv(100))
        heard.append(str(get("/ready")).encode())
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=watch)
    watcher.start()
    running.run([gate])
    watcher.join()
    assert heard[0] == b"READY=1"
    assert heard[-1] == str((200, "yes\n")).encode()
    assert gate.calls == ["start", "stop"]
    while b"STOPPING=1" not in heard:
        heard.append(notified.recv(100))
    events = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["ready", "stopped"]
    assert events[0]["backend"] == {
        "name": "onnxruntime",
        "provider": "CPUExecutionProvider",
        "precision": running.station.enhancer.bundle.contract.precision,
    }
    assert events[0]["notes"] == []
    assert "stopping" in str(running.not_ready())


@pytest.mark.usefixtures("signals")
def test_a_service_whose_surface_dies_ends_with_the_reason(
    tmp_path: Path, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "LOOK_SECONDS", 0.01)
    gate = Gate(tmp_path)
    gate.why = "the listener died"
    with pytest.raises(TryAgainLater, match="gate: the listener died"):
        serving(make_bundle).run([gate])
    assert gate.calls == ["start", "stop"]


@pytest.mark.usefixtures("signals")
def test_a_service_whose_device_failed_ends_with_the_reason(
    tmp_path: Path, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serving(make_bundle)
    assert running.not_live() is None
    monkeypatch.setattr(type(running.station.enhancer.step), "broken", True)
    assert "the back end onnxruntime has failed" in str(running.not_live())
    with pytest.raises(TryAgainLater, match=r"has failed on its device; stopped: start the service again"):
        running.run([Gate(tmp_path)])


@pytest.mark.usefixtures("signals")
def test_an_audit_log_that_cannot_be_written_makes_a_service_not_ready_and_does_not_end_it(
    tmp_path: Path, make_bundle: MakeBundle
) -> None:
    path = tmp_path / "audit.jsonl"
    running = serving(make_bundle, audit={"path": str(path)})
    running._stopping.set()
    log = running._audit
    assert log is not None

    class Filling(Gate):
        def stop(self) -> None:
            self.free = fill(log)

    gate = Filling(tmp_path)
    running.run([gate])  # as at a signal
    running._why_not_ready = None
    for _ in range(2):
        assert "No space left on device; expected an audit log" in str(running.not_ready())
    assert running.not_live() is None
    gate.free()
    assert running.not_ready() is None
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["event"] for event in events] == ["ready", "resumed"]
    assert "No space left" in events[1]["reason"]


def test_a_full_disk_makes_a_service_not_ready_but_alive(tmp_path: Path, make_bundle: MakeBundle) -> None:
    running = serving(make_bundle, disk={"least_free_mib": 1 << 40})
    running.surfaces = [Gate(tmp_path)]
    running._why_not_ready = None
    assert "free some space" in str(running.not_ready())
    assert running.not_live() is None
    running.station.close()


def test_every_setting_is_documented() -> None:
    for table in fields(ConsoleSettings):
        kind = type(getattr(ConsoleSettings(), table.name))
        assert kind.__doc__
        for name in fields(kind):
            assert f"        {name.name}" in kind.__doc__ or f"`{name.name}`" in kind.__doc__, (table.name, name.name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    """Poll until the condition holds; fail at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
