"""The systemd unit of `lfmri serve`: systemd.service(5), systemd.exec(5), systemd.resource-control(5)."""

import re
from collections.abc import Sequence
from pathlib import Path

from lfmri_runtime.errors import UsageError

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
# Usage, input, bundle and back end: starting again would not help.
Restart=on-failure
RestartSec=10
RestartPreventExitStatus=2 3 4 5
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
Environment=XDG_CACHE_HOME=%C/lfmri
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
# GPUs of NVIDIA, and of what draws on the screen.
DevicePolicy=closed
DeviceAllow=char-nv* rw
DeviceAllow=char-drm rw

[Install]
WantedBy=multi-user.target
"""
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


def unit_text(command: Sequence[str | Path], *, user: str | None) -> str:
    """The unit's text.

    Args:
        command: program and arguments.
        user: whom it runs as; None lets systemd make a user for as long as it runs.

    Raises:
        UsageError: a name that no user has.
    """
    if user is not None and not _USER.fullmatch(user):
        raise UsageError(f"--user is {user!r}; expected the name of a user, in small letters")
    return UNIT.format(
        command=" ".join(_quoted(str(word)) for word in command),
        user="DynamicUser=yes" if user is None else f"User={user}",
    )


def _quoted(word: str) -> str:
    """A word of ExecStart as it stands: systemd expands % and $, and splits at spaces."""
    if not word.isprintable():
        raise UsageError(f"the path {word!r} holds what a unit cannot; expected printable characters")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or " " in word or "'" in word else word
