"""The systemd unit of `lfmri serve`: systemd.service(5), systemd.exec(5), systemd.resource-control(5)."""

import re
from collections.abc import Sequence
from pathlib import Path

from lfmri_runtime.errors import UsageError

#: The service's XDG_CACHE_HOME; engines and the choice of a back end lie in its folder `lfmri`.
CACHE = Path("/var/cache/lfmri")
#: Nodes of a Jetson's GPU below /dev. Their groups in /proc/devices are `misc` or named after an address, so each is
#: allowed by its path.
JETSON_NODES = ("nvmap", "host1x-fence", "nvhost*", "nvgpu/*/*")
#: Whose members may open a GPU's nodes where these are not everybody's.
GPU_GROUPS = ("video", "render")
#: What the service gets of the machine. Not set, since the network needs it: MemoryDenyWriteExecute (engines compile
#: code), ProcSubset=pid (the CPU's features are read from /proc), PrivateDevices and PrivateUsers (GPUs).
UNIT = """\
# Written by `lfmri install-service`; changes belong into `systemctl edit lfmri`, which keeps them apart.
[Unit]
Description=Enhances low-field MR scans for scanner consoles
After=network.target
# A full disk or a missing share may last: it is tried for ever.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
{user}
# Usage, input and bundle: starting again would not help. A GPU may come up after the service.
Restart=on-failure
RestartSec=10
RestartPreventExitStatus=2 3 4
WatchdogSec=30
# The model is loaded and warmed before the service is ready.
TimeoutStartSec=300
# A large scan in many steps on few cores is finished, not cut off.
TimeoutStopSec=900

# /var/lib/lfmri, /var/cache/lfmri and /var/log/lfmri are all that it may write to; for other folders:
# systemctl edit lfmri, then [Service] ReadWritePaths=/path
StateDirectory=lfmri
CacheDirectory=lfmri
LogsDirectory=lfmri
Environment=XDG_CACHE_HOME={cache}
UMask=0027
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
MemoryMax=75%
OOMPolicy=stop

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
# GPUs of NVIDIA, and of what draws on the screen; nodes and groups that were here when this was written.
SupplementaryGroups={groups}
DevicePolicy=closed
DeviceAllow=char-nv* rw
DeviceAllow=char-drm rw{nodes}

[Install]
WantedBy=multi-user.target
"""
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


def unit_text(command: Sequence[str | Path], *, user: str | None, root: Path) -> str:
    """The unit's text.

    Args:
        command: program and arguments.
        user: whom it runs as; None lets systemd make a user for as long as it runs.
        root: of the machine that the unit is for; its /dev and /etc/group say what a GPU there needs.

    Raises:
        UsageError: a name that no user has.
    """
    if user is not None and not _USER.fullmatch(user):
        raise UsageError(f"--user is {user!r}; expected the name of a user, in small letters")
    return UNIT.format(
        command=" ".join(_quoted(str(word)) for word in command),
        user="DynamicUser=yes" if user is None else f"User={user}",
        cache=CACHE,
        groups=" ".join(name for name in GPU_GROUPS if name in _groups(root)),
        nodes="".join(f"\nDeviceAllow=/{node.relative_to(root)} rw" for node in _jetson_nodes(root)),
    )


def _jetson_nodes(root: Path) -> list[Path]:
    return sorted(node for pattern in JETSON_NODES for node in (root / "dev").glob(pattern) if node.is_char_device())


def _groups(root: Path) -> set[str]:
    """Names of the groups; systemd refuses to start a service with any other."""
    path = root / "etc/group"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return {line.partition(":")[0] for line in lines}


def _quoted(word: str) -> str:
    """A word of ExecStart as it stands: systemd expands % and $, and splits at spaces."""
    if not word.isprintable():
        raise UsageError(f"the path {word!r} holds what a unit cannot; expected printable characters")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or " " in word or "'" in word else word
