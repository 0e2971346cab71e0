"""`lfmri watch`."""

import dataclasses
import os
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lfmri_runtime.errors import InputRefused

if TYPE_CHECKING:
    from lfmri_runtime.console.settings import ConsoleSettings
    from lfmri_runtime.console.station import Station
    from lfmri_runtime.folder.work import Result


@click.command()
@click.option("--in", "input_", type=click.Path(path_type=Path), help="Folder where scans arrive.")
@click.option("--out", "output", type=click.Path(path_type=Path), help="Folder where enhanced scans go.")
@click.option("--once", is_flag=True, help="Enhance what is there and end.")
@click.option("--config", type=click.Path(path_type=Path), help="Configuration in TOML; options given here win.")
@click.option(
    "--layout",
    type=click.Choice(["plain", "bids"]),
    help="Names kept, or a BIDS derivative data set.  [default: plain]",
)
@click.option("--grid", type=click.Choice(["isotropic", "input"]), help="Grid of the output.  [default: isotropic]")
@click.option("--bundle", type=click.Path(path_type=Path), help="Model to use.  [default: the built-in one]")
def watch(
    input_: Path | None,
    output: Path | None,
    once: bool,
    config: Path | None,
    layout: str | None,
    grid: str | None,
    bundle: Path | None,
) -> None:
    """Enhance every scan that arrives in a folder: NIfTI or MGH files, and folders of DICOM files.

    Originals end in IN/done, or in IN/failed with the reason beside them. With --once, without --in and --out, the
    folders are those of MERCURE_IN_DIR and MERCURE_OUT_DIR, or of HOLOSCAN_INPUT_PATH and HOLOSCAN_OUTPUT_PATH; their
    input is left as it is.
    """
    from lfmri_runtime.console.configuration import read_settings
    from lfmri_runtime.console.settings import ConsoleSettings

    settings = ConsoleSettings() if config is None else read_settings(config)
    folder = {"input": input_, "output": output, "layout": layout, "grid": grid}
    settings = _over(settings, "folder", {key: str(value) for key, value in folder.items() if value is not None})
    settings = _over(settings, "model", {} if bundle is None else {"bundle": str(bundle)})
    settings.check()
    if not once:
        _serve(settings)
        return
    results = _look_twice(settings) if settings.folder.input else _in_container(settings)
    failed = [result.reason for result in results if result.status == "failed"]
    if failed and len(failed) == len(results):
        raise InputRefused(failed[0] if len(failed) == 1 else f"all {len(failed)} scans failed; the first: {failed[0]}")


def _over(settings: "ConsoleSettings", table: str, values: dict[str, str]) -> "ConsoleSettings":
    changed: Any = {table: dataclasses.replace(getattr(settings, table), **values)}
    return dataclasses.replace(settings, **changed)


def _serve(settings: "ConsoleSettings") -> None:
    from lfmri_runtime.console.service import Service
    from lfmri_runtime.folder.surface import FolderSurface, check

    check(settings.folder)
    service = Service(settings, sinks=[Echo()])
    service.run([FolderSurface(settings, service.station)])


def _look_twice(settings: "ConsoleSettings") -> "list[Result]":
    from lfmri_runtime.console.station import EnhanceOptions
    from lfmri_runtime.folder.spool import Spool
    from lfmri_runtime.folder.surface import check, make_worker
    from lfmri_runtime.folder.watching import Watcher

    check(settings.folder)
    worker = make_worker(settings, _station(settings), EnhanceOptions(grid=settings.folder.grid))
    folder = settings.folder
    with closing(Spool(Path(folder.input), Path(folder.output), layout=folder.layout)) as spool:
        worker.layout.prepare()
        watcher = Watcher(spool, worker, least_free_mib=settings.disk.least_free_mib)
        results = watcher.look()
        time.sleep(folder.poll_seconds)
        return results + watcher.look()


def _in_container(settings: "ConsoleSettings") -> "list[Result]":
    from lfmri_runtime.console.station import EnhanceOptions
    from lfmri_runtime.folder.container import bundle_of, folders_of, run, task_options
    from lfmri_runtime.folder.surface import make_worker

    source, target = folders_of(os.environ)
    options = task_options(source, EnhanceOptions(grid=settings.folder.grid))
    settings = _over(settings, "folder", {"input": str(source), "output": str(target)})
    settings = _over(settings, "model", {"bundle": settings.model.bundle or bundle_of(os.environ)})
    return run(make_worker(settings, _station(settings), options), source)


def _station(settings: "ConsoleSettings") -> "Station":
    from lfmri_runtime.console.journal import AuditLog, Journal
    from lfmri_runtime.console.station import Station

    audit = [AuditLog(Path(settings.audit.path))] if settings.audit.path else []
    return Station(settings.model, Journal([*audit, Echo()]))


class Echo:
    """A line for each scan; by its hash, since a name may be a patient's."""

    def record(self, event: str, fields: dict[str, Any]) -> None:
        """Print what a person who watches the watcher wants to know."""
        if event not in ("enhanced", "passed-by", "failed", "delayed"):
            return
        source = str(fields.get("source", ""))[:12]
        said = f"in {sum(fields['seconds'].values()):.1f} s" if event == "enhanced" else fields["reason"]
        click.echo(" ".join(filter(None, (event, source, said))), err=event in ("failed", "delayed"))
