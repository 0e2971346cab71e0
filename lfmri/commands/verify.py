"""`lfmri verify`."""

from pathlib import Path

import click

from lfmri.options import backend_options, bundle_option
from lfmri_runtime.errors import BundleRefused


@click.command()
@bundle_option
@backend_options
@click.option(
    "--out", default=Path("verify"), show_default=True, type=click.Path(path_type=Path), help="Folder of the result."
)
def verify(bundle: Path | None, backend: str, precision: str | None, threads: int, out: Path) -> None:
    """Accept this device, or refuse it with exit code 4: is a model here what it was where it was made?

    Writes verify.json, signed by its own sha256, and the page verify.md.
    """
    from lfmri_runtime.bundle import open_bundle
    from lfmri_runtime.choice import choose
    from lfmri_runtime.device.verify import page, verify
    from lfmri_runtime.files import check_writable, write_json, write_text

    for name in ("verify.json", "verify.md"):
        check_writable(out / name)
        (out / name).unlink(missing_ok=True)  # an earlier verdict is not this one
    opened = open_bundle(bundle)
    if backend == "auto":
        choice = choose(opened, precision=precision, require=True, threads=threads)
        backend, precision = choice.step.name, choice.step.precision
        for note in choice.notes:
            click.echo(f"lfmri: note: {note}", err=True)
        choice.step.close()
    document = verify(
        opened, backend, precision, threads=threads, say=lambda line: click.echo(f"lfmri: {line}", err=True)
    )
    write_json(out / "verify.json", document)
    write_text(out / "verify.md", page(document))
    click.echo(page(document))
    if document["verdict"] != "passed":
        failed = ", ".join(check["name"] for check in document["checks"] if not check["passed"])
        raise BundleRefused(f"{backend} must not run this bundle here; failed: {failed}: see {out / 'verify.md'}")
