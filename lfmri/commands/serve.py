"""`lfmri serve`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

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
    if not address or not port.isdigit():
        raise click.BadParameter(f"{value!r} is no endpoint; expected ADDRESS:PORT, for example 127.0.0.1:9002")
    return address.removeprefix("[").removesuffix("]"), int(port)


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="Configuration in TOML; options given here win.")
@click.option(
    "--mrd", metavar="ADDRESS:PORT", callback=endpoint, help="Where the MRD server listens, 127.0.0.1:9002 for example."
)
@click.option("--health", metavar="ADDRESS:PORT", callback=endpoint, help="Where /live, /ready and /metrics answer.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Model to use.  [default: the built-in one]")
@click.option("--beyond-loopback", is_flag=True, help="Allow addresses that other machines can reach.")
def serve(
    config: Path | None,
    mrd: tuple[str, int] | None,
    health: tuple[str, int] | None,
    bundle: Path | None,
    beyond_loopback: bool,
) -> None:
    """Serve scanner consoles until a signal ends it: an MRD server, a DICOM node, a watched folder.

    SIGTERM lets the current scan finish or returns it to the spool.
    """
    from lfmri_runtime.console.service import Service
    from lfmri_runtime.console.settings import ConsoleSettings, read_settings

    settings = ConsoleSettings() if config is None else read_settings(config)
    for table, place in (("mrd", mrd), ("health", health)):
        if place is not None:
            section = dataclasses.replace(getattr(settings, table), address=place[0], port=place[1])
            settings = dataclasses.replace(settings, **{table: section})
    if bundle is not None:
        settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, bundle=str(bundle)))
    if beyond_loopback:
        settings = dataclasses.replace(settings, network=dataclasses.replace(settings.network, beyond_loopback=True))
    settings.check()
    if not (settings.mrd.port or settings.dicom.port or settings.folder.input):
        raise UsageError("nothing to serve; expected --mrd, --dicom, or a configuration that names a port or a folder")
    service = Service(settings)
    service.run(surfaces_of(settings, service))


def surfaces_of(settings: "ConsoleSettings", service: "Service") -> "list[Surface]":
    """One surface for every section that asks for one."""
    surfaces: list[Surface] = []
    if settings.folder.input:
        from lfmri_runtime.folder.surface import FolderSurface

        surfaces.append(FolderSurface(settings, service.station))
    if settings.mrd.port:
        from lfmri_runtime.mrd.server import MrdServer

        surfaces.append(MrdServer(settings.mrd, settings.output, service.station))
    return surfaces
