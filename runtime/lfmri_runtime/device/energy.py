"""Energy that a board reports: counters (RAPL, hwmon) read twice, or power sensors (hwmon, a Jetson's) sampled."""

import math
import threading
import time
from pathlib import Path

SYS = Path("/sys")
#: Seconds between two samples of a power sensor (assumed; a Jetson refreshes its own about this often).
PERIOD = 0.1
MICRO = 1e-6
#: Names of the rails that together feed a whole Jetson module: of Orin NX and Nano, and of AGX Orin.
RAILS = (("VDD_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))
#: Files whose product, times a unit, is a power in watts.
Sensor = tuple[tuple[Path, ...], float]


class EnergyMeter:
    """Joules between entering and leaving; `joules` stays None where nothing reports.

    Args:
        root: the kernel's sysfs.
    """

    def __init__(self, root: Path = SYS) -> None:
        self.joules: float | None = None
        self.source = "not reported"
        self._packages = _readable(_rapl(root))
        self._counters = self._packages + _readable(sorted(root.glob("class/hwmon/*/energy1_input")))
        self._powers = [] if self._counters else _power_sensors(root)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "EnergyMeter":
        """Begin to count."""
        if self._counters:
            self._start = [_number(path) for path in self._counters]
        elif self._powers:
            self.joules = 0.0
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop counting."""
        if self._counters:
            alone = "the CPU package alone, " if self._packages == self._counters else ""
            self.source = f"{alone}counters: " + ", ".join(path.parent.name for path in self._counters)
            triples = zip(self._counters, self._start, map(_number, self._counters), strict=True)
            self.joules = sum(_since(*triple) for triple in triples) * MICRO
        elif self._thread is not None:
            self.source = f"{len(self._powers)} power sensors, every {PERIOD} s"
            self._stop.set()
            self._thread.join()

    def _sample(self) -> None:
        before = time.perf_counter()
        while not self._stop.wait(PERIOD):
            now = time.perf_counter()
            self.joules = (self.joules or 0.0) + sum(_watts(*sensor) for sensor in self._powers) * (now - before)
            before = now


def _rapl(root: Path) -> list[Path]:
    """RAPL's counters of whole CPU packages: not of their parts, nor of the platform around them, nor twice by MMIO."""
    domains = (path.parent for path in sorted(root.glob("class/powercap/intel-rapl:*/energy_uj")))
    return [
        domain / "energy_uj"
        for domain in domains
        if domain.name.count(":") == 1 and _text(domain / "name").startswith("package-")
    ]


def _power_sensors(root: Path) -> list[Sensor]:
    """Hwmon's power1, else a Jetson's total: millivolts and milliamperes of the rails that feed the module."""
    chips = sorted(root.glob("class/hwmon/hwmon*"))
    if direct := _readable([chip / "power1_input" for chip in chips]):
        return [((path,), MICRO) for path in direct]
    rails: dict[str, Sensor] = {}
    for label in (label for chip in chips for label in sorted(chip.glob("in*_label"))):
        number = label.name.removeprefix("in").removesuffix("_label")
        pair = _readable([label.with_name(f"{kind}{number}_input") for kind in ("in", "curr")])
        if len(pair) == 2:
            rails[_text(label)] = (tuple(pair), MICRO)
    return next(([rails[name] for name in feed] for feed in RAILS if rails.keys() >= set(feed)), [])


def _watts(paths: tuple[Path, ...], unit: float) -> float:
    return math.prod(map(_number, paths)) * unit


def _since(path: Path, before: float, after: float) -> float:
    """A counter's growth; RAPL's begins again at its range."""
    limit = path.with_name("max_energy_range_uj")
    return after - before if after >= before else after - before + (_number(limit) if limit.exists() else 0.0)


def _readable(paths: list[Path]) -> list[Path]:
    """Those that this user may read and that hold a number."""
    kept = []
    for path in paths:
        try:
            _number(path)
        except (OSError, ValueError):
            continue
        kept.append(path)
    return kept


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> float:
    return float(path.read_text())
