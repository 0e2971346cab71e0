"""`lfmri install-service`."""

import stat
import sys
from pathlib import Path

import click

UNIT = Path("/etc/systemd/system/lfmri.service")
CONFIGURATION = Path("/etc/lfmri/lfmri.toml")


@click.command("install-service")
@click.option(
    "--config",
    default=CONFIGURATION,
    show_default=True,
    type=click.Path(path_type=Path),
    help="Configuration that the service reads; an existing one is kept as it is.",
)
@click.option(
    "--root",
    default=Path("/"),
    type=click.Path(path_type=Path),
    help="Write below another root, that of a disk image for example.",
)
@click.option("--user", help="Whom the service runs as.  [default: a user that systemd makes]")
def install_service(config: Path, root: Path, user: str | None) -> None:
    """Write a systemd unit for `lfmri serve` and an example configuration.

    The service runs with the Python that runs this command, and may use the GPU that is here now.
    """
    from lfmri_runtime.console.example import HEADING, example_configuration
    from lfmri_runtime.console.unit import CACHE, unit_text
    from lfmri_runtime.files import check_writable, write_text

    config = config.absolute()
    unit, configuration = (root / path.relative_to(path.anchor) for path in (UNIT, config))
    text = unit_text([sys.executable, "-m", "lfmri", "serve", "--config", config], user=user, root=root)
    for path, content in ((unit, text), (configuration, f"{HEADING}\n{example_configuration()}")):
        if path == configuration and path.exists():
            click.echo(f"kept {path}")
            continue
        check_writable(path)
        write_text(path, content)
        click.echo(f"wrote {path}")
    click.echo(f"the service looks for engines in {CACHE / 'lfmri'}; to make one there:")
    click.echo(f"env XDG_CACHE_HOME={CACHE} {sys.executable} -m lfmri export --trt")
    for folder in _closed_folders(Path(sys.executable)) if user is None else ():
        click.echo(
            f"lfmri: note: {folder} is closed to others, so the service's user cannot start {sys.executable}: "
            "install lfmri below /opt, or give --user",
            err=True,
        )
    click.echo(f"next: edit {configuration}, then: systemctl daemon-reload; systemctl enable --now lfmri")


def _closed_folders(program: Path) -> list[Path]:
    """Folders above a program, or above what it links to, that others may not enter; a home often is one."""
    folders = {*program.parents, *program.resolve().parents}
    return sorted(folder for folder in folders if not folder.stat().st_mode & stat.S_IXOTH)
