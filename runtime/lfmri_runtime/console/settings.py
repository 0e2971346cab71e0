"""What a console service can be told; everything has a default.

An address is loopback unless [network] beyond_loopback says otherwise.
"""

import ipaddress
from dataclasses import dataclass, field

from lfmri_runtime.contract import MAX_STEPS
from lfmri_runtime.enhancer import GRIDS, SEEDS
from lfmri_runtime.errors import UsageError

#: Text that every derived series carries unless the site words its own.
LABEL = "enhanced by lfmri - not for diagnosis"
#: A label shares a DICOM description's 64 characters (LO, PS3.5 6.2) with " uncertainty" and the original's text.
MAX_LABEL = 40
LAYOUTS = ("plain", "bids")
LARGEST_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model runs and how.

    Attributes:
        bundle: its folder; empty for the built-in one.
        backend: what runs it; auto takes the fastest that passes the golden check on this machine.
        precision: float32, float16 or bfloat16; empty takes the fastest.
        require: refuse to start rather than run on anything else than backend and precision.
        threads: of the network's arithmetic; 0 takes all cores.
        steps: Euler steps; 0 takes the bundle's default.
        samples: draws of x_0 to average.
        seed: of the noise.
        warm_side: slices of this side pass once through the network before the service says that it is ready.
    """

    bundle: str = ""
    backend: str = "auto"
    precision: str = ""
    require: bool = False
    threads: int = 0
    steps: int = 0
    samples: int = 1
    seed: int = 0
    warm_side: int = 192


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """What leaves.

    Attributes:
        label: the site's own text on every derived series.
        uncertainty: whether the standard deviation over samples leaves too; needs samples of at least 2.
    """

    label: str = LABEL
    uncertainty: bool = False


@dataclass(frozen=True, kw_only=True)
class FolderSettings:
    """The watched folder.

    Attributes:
        input: where scans arrive; empty for no watched folder.
        output: where enhanced scans go.
        layout: plain (names kept) or bids (a BIDS derivative data set).
        grid: isotropic (the working grid) or input (the scan's own).
        poll_seconds: between two looks; a file is whole when two looks find it unchanged.
    """

    input: str = ""
    output: str = ""
    layout: str = "plain"
    grid: str = "isotropic"
    poll_seconds: float = 1.0


@dataclass(frozen=True, kw_only=True)
class MrdSettings:
    """The MRD server.

    Attributes:
        address: to listen on.
        port: 0 for no MRD server; 9002 is the customary one.
        connections: at the same time; more are turned away.
        timeout_seconds: longest time for one message to arrive whole, and for a client to take an answer.
        idle_seconds: longest wait for the next message; a scanner may connect when its measurement begins and send
            its images at the end.
    """

    address: str = "127.0.0.1"
    port: int = 0
    connections: int = 16
    timeout_seconds: float = 60.0
    idle_seconds: float = 1800.0


@dataclass(frozen=True, kw_only=True)
class DicomPeer:
    """Another DICOM node.

    Attributes:
        title: its application entity title.
        address: host name or address.
        port: where it listens; 0 for a peer that only sends.
    """

    title: str
    address: str
    port: int


@dataclass(frozen=True, kw_only=True)
class DicomSettings:
    """The DICOM node.

    Attributes:
        title: our application entity title.
        address: to listen on.
        port: 0 for no DICOM node; 11112 is the customary one.
        spool: folder of received, waiting and outgoing instances; must outlive a restart.
        quiet_seconds: a series is complete when nothing has come for it for so long.
        retry_seconds: first wait after a failed delivery; doubled each time.
        retries: of one delivery before it goes into quarantine.
        peers: who may send; both title and address must match. Empty refuses everybody.
        destinations: who gets the enhanced series.
        certificate: PEM file of our certificate; with `key` and `authority` every association is TLS with
            certificates on both sides. Empty for no TLS.
        key: PEM file of its private key.
        authority: PEM file of the authority that signs the peers' certificates.
    """

    title: str = "LFMRI"
    address: str = "127.0.0.1"
    port: int = 0
    spool: str = ""
    quiet_seconds: float = 10.0
    retry_seconds: float = 5.0
    retries: int = 12
    peers: tuple[DicomPeer, ...] = ()
    destinations: tuple[DicomPeer, ...] = ()
    certificate: str = ""
    key: str = ""
    authority: str = ""


@dataclass(frozen=True, kw_only=True)
class HealthSettings:
    """/live, /ready and /metrics over HTTP.

    Attributes:
        address: to listen on.
        port: 0 for none.
    """

    address: str = "127.0.0.1"
    port: int = 0


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """The audit log: one JSON object a line; hashes, UIDs and timings, no names.

    Attributes:
        path: file that lines are appended to; empty for none.
    """

    path: str = ""


@dataclass(frozen=True, kw_only=True)
class DiskSettings:
    """The watermark.

    Attributes:
        least_free_mib: below this nothing new is accepted, and /ready says so.
    """

    least_free_mib: int = 512


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Who may reach us at all.

    Attributes:
        beyond_loopback: allows addresses other than loopback.
    """

    beyond_loopback: bool = False


@dataclass(frozen=True, kw_only=True)
class ConsoleSettings:
    """The whole file; one table for each attribute."""

    model: ModelSettings = field(default_factory=ModelSettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    folder: FolderSettings = field(default_factory=FolderSettings)
    mrd: MrdSettings = field(default_factory=MrdSettings)
    dicom: DicomSettings = field(default_factory=DicomSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    disk: DiskSettings = field(default_factory=DiskSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)

    def check(self) -> None:
        """Check what types cannot say.

        Raises:
            UsageError: naming the setting, what was found and what was expected.
        """
        for table in ("mrd", "dicom", "health"):
            section = getattr(self, table)
            _check_port(f"{table}.port", section.port)
            if section.port and not self.network.beyond_loopback:
                _check_loopback(f"{table}.address", section.address)
        for peer in self.dicom.destinations:
            if not 1 <= peer.port <= LARGEST_PORT:
                raise UsageError(
                    f"the port of {peer.title!r} in dicom.destinations is {peer.port}; expected 1 to {LARGEST_PORT}"
                )
        positive = {
            "folder.poll_seconds": self.folder.poll_seconds,
            "mrd.timeout_seconds": self.mrd.timeout_seconds,
            "mrd.idle_seconds": self.mrd.idle_seconds,
            "mrd.connections": self.mrd.connections,
            "dicom.quiet_seconds": self.dicom.quiet_seconds,
            "dicom.retry_seconds": self.dicom.retry_seconds,
        }
        for name, value in positive.items():
            if value <= 0:
                raise UsageError(f"{name} is {value}; expected more than 0")
        ranges = {"steps": (0, MAX_STEPS), "samples": (1, MAX_STEPS), "seed": (0, SEEDS - 1)}
        for name, (least, most) in ranges.items():
            if not least <= getattr(self.model, name) <= most:
                raise UsageError(f"model.{name} is {getattr(self.model, name)}; expected {least} to {most}")
        if self.folder.layout not in LAYOUTS:
            raise UsageError(f"folder.layout is {self.folder.layout!r}; expected one of {', '.join(LAYOUTS)}")
        if self.folder.grid not in GRIDS:
            raise UsageError(f"folder.grid is {self.folder.grid!r}; expected one of {', '.join(GRIDS)}")
        check_label(self.output.label)
        if self.output.uncertainty and self.model.samples < 2:
            raise UsageError("output.uncertainty needs several draws; expected model.samples of at least 2")
        if self.dicom.port and not self.dicom.spool:
            raise UsageError("dicom.spool is empty; expected a folder that outlives a restart")
        if len({bool(self.dicom.certificate), bool(self.dicom.key), bool(self.dicom.authority)}) > 1:
            raise UsageError("dicom.certificate, key and authority belong together; expected all three or none")


def check_label(label: str) -> None:
    """Refuse a label that DICOM or the original's description leaves no room for.

    Raises:
        UsageError: it is empty, too long, or not printable ASCII without a backslash.
    """
    plain = label.isascii() and label.isprintable() and "\\" not in label
    if not (plain and label.strip() and len(label) <= MAX_LABEL):
        raise UsageError(f"the label {label!r}; expected 1 to {MAX_LABEL} printable ASCII characters, no backslash")


def _check_port(name: str, port: int) -> None:
    if not 0 <= port <= LARGEST_PORT:
        raise UsageError(f"{name} is {port}; expected 1 to {LARGEST_PORT}, or 0 for none")


def _check_loopback(name: str, address: str) -> None:
    try:
        loopback = address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise UsageError(
            f"{name} is {address!r}, which others can reach; expected a loopback address, or network.beyond_loopback "
            "(--beyond-loopback) to say that this is meant"
        )
