"""`lfmri doctor`."""

from pathlib import Path

import click

from lfmri.options import bundle_option


@click.command()
@bundle_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def doctor(bundle: Path | None, as_json: bool) -> None:
    """Say what is usable on this machine, and for everything else the reason and the line that mends it."""
    import json
    from dataclasses import asdict

    from lfmri_runtime.device.doctor import examine

    findings = examine(bundle)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
        return
    from lfmri.tables import print_table

    rows = [("yes" if f.usable else "no", f.subject, f.found + (f"\n-> {f.mend}" if f.mend else "")) for f in findings]
    print_table("", ("usable", "what", "found"), rows)
