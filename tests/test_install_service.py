"""The systemd unit and the example configuration; systemd itself reads the unit, a socket of ours hears the service."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from lfmri.cli import run
from lfmri_runtime.backends.tensorrt.identity import engine_folder
from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.console.configuration import read_settings
from lfmri_runtime.console.example import attributes, example_configuration
from lfmri_runtime.console.settings import ConsoleSettings, DicomPeer
from lfmri_runtime.errors import BundleRefused, InputRefused, UsageError

from .bundles import MakeBundle
from .peers import require_peer

UNIT = Path("etc/systemd/system/lfmri.service")
CONFIGURATION = Path("etc/lfmri/lfmri.toml")
#: Of 10; systemd's own word for it is OK.
MOST_EXPOSED = 2.5
DEADLINE = 60.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    assert run(["install-service", "--root", str(tmp_path)]) == 0
    return tmp_path


def make_jetson(root: Path) -> None:
    """Nodes of a GPU as JetPack makes them, and what else lies beside them."""
    for name in ("nvmap", "host1x-fence", "nvhost-gpu", "nvgpu/igpu0/ctrl", "nvme0", "null"):
        (root / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "dev" / name).symlink_to("/dev/null")
    (root / "dev/nvhost-file").touch()
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/group").write_text("root:x:0:\nvideo:x:44:mri\n")


def found(root: Path, key: str) -> list[str]:
    """The values of one key of the unit."""
    return re.findall(rf"^{key}=(.*)$", (root / UNIT).read_text(), re.MULTILINE)


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    require_peer("systemd-analyze", shutil.which("systemd-analyze") is not None)
    words = ["systemd-analyze", "--no-pager", *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=DEADLINE)


def test_the_example_names_every_setting_with_its_default(root: Path) -> None:
    path = root / CONFIGURATION
    assert read_settings(path) == ConsoleSettings()
    text = path.read_text()
    path.write_text(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE))
    assert path.read_text() != text
    assert read_settings(path) == ConsoleSettings()
    for table in fields(ConsoleSettings):
        section = text.partition(f"\n[{table.name}]\n")[2].partition("\n[")[0]
        for key in fields(getattr(ConsoleSettings(), table.name)):
            assert re.search(rf"\n?# .+\n# {key.name} = ", section), f"{table.name}.{key.name}"


def test_what_a_list_holds_is_said() -> None:
    assert list(attributes(DicomPeer)) == ["title", "address", "port"]
    assert example_configuration().count("# Each is { title = ..., address = ..., port = ... }.") == 2


@pytest.mark.parametrize("jetson", [False, True])
def test_systemd_reads_the_unit_and_finds_it_closed(root: Path, jetson: bool) -> None:
    if jetson:
        make_jetson(root)
        assert run(["install-service", "--root", str(root)]) == 0
    done = analyze("verify", root / UNIT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = analyze("security", "--offline=true", f"--threshold={int(10 * MOST_EXPOSED)}", root / UNIT)
    assert done.returncode == 0, done.stdout[-3000:]
    (root / UNIT).write_text((root / UNIT).read_text().replace("NoNewPrivileges=yes", "NoSuchKey=yes"))
    assert "NoSuchKey" in analyze("verify", root / UNIT).stderr, "systemd can complain"


def test_a_configuration_that_is_there_is_kept(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / CONFIGURATION).write_text("[model]\nsteps = 5\n")
    (root / UNIT).write_text("old")
    assert run(["install-service", "--root", str(root)]) == 0
    said = capsys.readouterr().out
    assert f"kept {root / CONFIGURATION}" in said
    assert said.endswith("systemctl daemon-reload; systemctl enable --now lfmri\n")
    assert (root / CONFIGURATION).read_text() == "[model]\nsteps = 5\n"
    assert "ExecStart" in (root / UNIT).read_text()
    assert {p.name for p in root.rglob("*") if p.is_file()} == {UNIT.name, CONFIGURATION.name}


def test_user_and_configuration_are_the_asked_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = "/etc/a b/%h$x.toml"
    assert run(["install-service", "--root", str(tmp_path), "--config", config, "--user", "mri"]) == 0
    assert (tmp_path / config[1:]).is_file()
    text = (tmp_path / UNIT).read_text()
    assert "\nUser=mri\n" in text
    assert "DynamicUser" not in text
    assert '--config "/etc/a b/%%h$$x.toml"\n' in text
    assert run(["install-service", "--root", str(tmp_path), "--user", "a\nRoot=1"]) == 2
    assert "expected the name of a user" in capsys.readouterr().err


def test_the_service_may_use_a_jetsons_gpu(tmp_path: Path) -> None:
    make_jetson(tmp_path)
    assert run(["install-service", "--root", str(tmp_path)]) == 0
    groups = ["char-nv*", "char-drm"]
    nodes = ["/dev/host1x-fence", "/dev/nvgpu/igpu0/ctrl", "/dev/nvhost-gpu", "/dev/nvmap"]
    assert found(tmp_path, "DeviceAllow") == [f"{name} rw" for name in (*groups, *nodes)]
    assert found(tmp_path, "SupplementaryGroups") == ["video"], "systemd starts nothing with a group that is not there"


def test_a_machine_without_a_gpu_has_no_more_than_the_kinds_of_nodes(root: Path) -> None:
    assert found(root, "DeviceAllow") == ["char-nv* rw", "char-drm rw"]
    assert found(root, "SupplementaryGroups") == [""]


def test_a_gpu_that_comes_up_late_is_waited_for(root: Path) -> None:
    codes = {str(error.exit_code) for error in (UsageError, InputRefused, BundleRefused)}
    assert set(found(root, "RestartPreventExitStatus")[0].split()) == codes


def test_where_engines_are_looked_for_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["install-service", "--root", str(tmp_path)]) == 0
    (folder, command) = re.findall(r"engines in (.*); to make one there:\n(.*)\n", capsys.readouterr().out)[0]
    (variable,) = found(tmp_path, "Environment")
    assert command == f"env {variable} {sys.executable} -m lfmri export --trt"
    monkeypatch.setenv(*variable.split("="))
    assert engine_folder(open_bundle(), None).parents[1] == Path(folder)


def test_a_home_that_the_services_user_cannot_enter_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o750)
    monkeypatch.setattr(sys, "executable", str(home / "python3"))
    assert run(["install-service", "--root", str(tmp_path)]) == 0
    assert f"note: {home} is closed to others" in capsys.readouterr().err
    assert run(["install-service", "--root", str(tmp_path), "--user", "mri"]) == 0
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    assert run(["install-service", "--root", str(tmp_path)]) == 0
    assert "closed" not in capsys.readouterr().err


# The service as the unit starts it


class Service:
    """The unit's command with a configuration of a watched folder, and the socket that it notifies."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.input = folder / "in"
        (folder / "in").mkdir()
        config = folder / "lfmri.toml"
        config.write_text(
            f'[folder]\ninput = "{folder / "in"}"\noutput = "{folder / "out"}"\npoll_seconds = 0.05\n'
            f'[model]\nbackend = "onnxruntime"\nbundle = "{bundle}"\nwarm_side = 8\n'
        )
        assert run(["install-service", "--root", str(folder), "--config", str(config)]) == 0
        (command,) = re.findall(r"^ExecStart=(.*)$", (folder / UNIT).read_text(), re.MULTILINE)
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.bind(str(folder / "notify"))
        self._channel.settimeout(DEADLINE)
        environment = {"NOTIFY_SOCKET": str(folder / "notify"), "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            shlex.split(command), env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
        )

    def hear(self, word: str) -> list[str]:
        """Messages up to the one that is waited for."""
        heard: list[str] = []
        end = time.monotonic() + DEADLINE
        while not heard or heard[-1] != word:
            assert time.monotonic() < end, heard[-5:]
            heard.append(self._channel.recv(4096).decode())
        return heard

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._channel.close()


@pytest.fixture
def start(tmp_path: Path, make_bundle: MakeBundle) -> Iterator[Callable[[], Service]]:
    started: list[Service] = []

    def start() -> Service:
        started.append(Service(tmp_path, make_bundle("noisy")))
        return started[-1]

    yield start
    for service in started:
        service.close()


def test_systemd_hears_that_it_is_ready_alive_and_stopping(start: Callable[[], Service]) -> None:
    service = start()
    assert service.hear("READY=1") == ["READY=1"]
    assert service.hear("WATCHDOG=1") == ["WATCHDOG=1"]
    service.process.send_signal(signal.SIGTERM)
    assert set(service.hear("STOPPING=1")) <= {"WATCHDOG=1", "STOPPING=1"}
    assert service.process.wait(DEADLINE) == 0
    assert service.process.stderr is not None
    assert service.process.stderr.read() == "lfmri: ready: onnxruntime float32 on CPUExecutionProvider\n"


def test_a_surface_that_dies_ends_the_process_with_an_error(start: Callable[[], Service]) -> None:
    service = start()
    service.hear("READY=1")
    shutil.rmtree(service.input)
    service.hear("STOPPING=1")
    assert service.process.wait(DEADLINE) == 6
    assert service.process.stderr is not None
    assert "folder: the watched folder: No such file" in service.process.stderr.read()
