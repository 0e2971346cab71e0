"""`lfmri serve`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lfmri_runtime.errors import UsageError

if TYPE_CHECKING:
    from lfmri_runtime.console.service import Service, Surface
    from lfmri_runtime.console.settings import ConsoleSettings


def endpoint(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """Split ADDRESS:PORT at the last colon; an IPv6 address may stand in brackets."""
    if value is None:
        return None
    address, _, port = value.rpartition(":")
    if not address or not (port.isascii() and port.isdigit()):
        raise click.BadParameter(f"{value!r} is no endpoint; expected ADDRESS:PORT, for example 127.0.0.1:9002")
    return address.removeprefix("[").removesuffix("]"), int(port)


def destinations_of(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, str, int], ...]:
    """Split each TITLE@HOST:PORT at its last @ sign."""
    parsed = []
    for title, place in (value.rpartition("@")[::2] for value in values):
        found = endpoint(context, parameter, place) if title else None
        if found is None:
            raise click.BadParameter(f"no title before {place!r}; expected TITLE@HOST:PORT, PACS@10.0.0.5:104 for one")
        parsed.append((title, *found))
    return tuple(parsed)


def senders_of(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, str, int], ...]:
    """Split each TITLE@ADDRESS at its last @ sign; a peer that only sends has no port."""
    parsed = tuple((*value.rpartition("@")[::2], 0) for value in values)
    if not all(title and address for title, address, _ in parsed):
        raise click.BadParameter(f"{values[0]!r}; expected TITLE@ADDRESS, CONSOLE@127.0.0.1 for one")
    return parsed


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="Configuration in TOML; options given here win.")
@click.option(
    "--mrd", metavar="ADDRESS:PORT", callback=endpoint, help="Where the MRD server listens, 127.0.0.1:9002 for example."
)
@click.option("--dicom", metavar="ADDRESS:PORT", callback=endpoint, help="Where the DICOM node listens.")
@click.option("--title", help="Application entity title of the DICOM node.  [default: LFMRI]")
@click.option(
    "--peer", metavar="TITLE@ADDRESS", multiple=True, callback=senders_of, help="Who may send DICOM; several."
)
@click.option(
    "--destination",
    metavar="TITLE@HOST:PORT",
    multiple=True,
    callback=destinations_of,
    help="Who gets enhanced DICOM series; several.",
)
@click.option("--spool", type=click.Path(), help="Folder of DICOM that has come and is to leave.")
@click.option("--health", metavar="ADDRESS:PORT", callback=endpoint, help="Where /live, /ready and /metrics answer.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Model to use.  [default: the built-in one]")
@click.option("--beyond-loopback", is_flag=True, help="Allow addresses that other machines can reach.")
def serve(
    config: Path | None,
    mrd: tuple[str, int] | None,
    dicom: tuple[str, int] | None,
    title: str | None,
    peer: tuple[tuple[str, str, int], ...],
    destination: tuple[tuple[str, str, int], ...],
    spool: str | None,
    health: tuple[str, int] | None,
    bundle: Path | None,
    beyond_loopback: bool,
) -> None:
    """Serve scanner consoles until a signal ends it: an MRD server, a DICOM node, a watched folder.

    SIGTERM lets the current scan finish or returns it to the spool.
    """
    from lfmri_runtime.console.configuration import read_settings
    from lfmri_runtime.console.service import Service
    from lfmri_runtime.console.settings import ConsoleSettings, DicomPeer

    settings = ConsoleSettings() if config is None else read_settings(config)
    for table, place in (("mrd", mrd), ("dicom", dicom), ("health", health)):
        if place is not None:
            section = dataclasses.replace(getattr(settings, table), address=place[0], port=place[1])
            settings = dataclasses.replace(settings, **{table: section})
    nodes = {
        name: tuple(DicomPeer(title=title, address=address, port=port) for title, address, port in parts)
        for name, parts in (("peers", peer), ("destinations", destination))
    }
    given: dict[str, Any] = {name: value for name, value in {"title": title, "spool": spool, **nodes}.items() if value}
    settings = dataclasses.replace(settings, dicom=dataclasses.replace(settings.dicom, **given))
    if bundle is not None:
        settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, bundle=str(bundle)))
    if beyond_loopback:
        settings = dataclasses.replace(settings, network=dataclasses.replace(settings.network, beyond_loopback=True))
    settings.check()
    if not (settings.mrd.port or settings.dicom.port or settings.folder.input):
        raise UsageError("nothing to serve; expected --mrd, --dicom, or a configuration that names a port or a folder")
    service = Service(settings, sinks=[Ready()])
    service.run(surfaces_of(settings, service))


class Ready:
    """Says what runs, and why nothing else does, where a service's errors go: in systemd's journal."""

    def record(self, event: str, fields: dict[str, Any]) -> None:
        """Print a line for the back end and one for each note."""
        if event != "ready":
            return
        backend = fields["backend"]
        click.echo(f"lfmri: ready: {backend['name']} {backend['precision']} on {backend['provider']}", err=True)
        for note in fields["notes"]:
            click.echo(f"lfmri: note: {note}", err=True)


def surfaces_of(settings: "ConsoleSettings", service: "Service") -> "list[Surface]":
    """One surface for every section that asks for one."""
    surfaces: list[Surface] = []
    if settings.folder.input:
        from lfmri_runtime.folder.surface import FolderSurface

        surfaces.append(FolderSurface(settings, service.station))
    if settings.mrd.port:
        from lfmri_runtime.mrd.server import MrdServer

        surfaces.append(MrdServer(settings.mrd, settings.output, service.station))
    if settings.dicom.port:
        from lfmri_runtime.dicomnode.node import DicomNode

        surfaces.append(DicomNode(settings, service.station, service.journal))
    return surfaces
