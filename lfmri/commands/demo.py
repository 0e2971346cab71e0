"""`lfmri demo`."""

from pathlib import Path

import click

from lfmri.extras import require
from lfmri.progress import progress_bar


@click.command()
@click.option(
    "--out", default=Path("out"), show_default=True, type=click.Path(path_type=Path), help="Folder of the results."
)
def demo(out: Path) -> None:
    """Enhance the sample scan with the built-in model, score it and show it."""
    require("skimage", extra="evaluate")
    from lfmri.tables import print_scores
    from lfmri_runtime.enhancer import Enhancer
    from lfmri_runtime.evaluation import write_json
    from lfmri_runtime.job import Outputs, check_outputs, enhance_file
    from lfmri_runtime.sample import LOW_FIELD, MASK, REFERENCE
    from lfmri_runtime.showing import show

    outputs = Outputs(out / "enhanced.nii.gz")
    page = out / "report.html"
    check_outputs([(LOW_FIELD, Outputs(outputs.scan, None, page))])
    with progress_bar("enhancing the sample scan") as progress:
        enhance_file(Enhancer(), LOW_FIELD, outputs, progress=progress)
    figures = show(page, outputs.scan, scan=LOW_FIELD, reference=REFERENCE, mask=MASK)
    write_json(out / "scores.json", figures)
    print_scores(figures)
    click.echo(f"wrote {outputs.scan}, its sidecar, scores.json and {page}: open the page in a browser")
