"""The benchmark's report: one set of sections, written as Markdown and as a page, beside CSV and PNG files."""

from collections.abc import Sequence
from pathlib import Path

from lfmri_runtime.bundle import Bundle
from lfmri_runtime.evaluation import RULE
from lfmri_runtime.files import atomic_write, write_text
from lfmri_runtime.geometry import AXES
from lfmri_runtime.lpips import Lpips
from lfmri_runtime.page.article import Section, Table, write_article
from lfmri_trainer.baselines.method import Method
from lfmri_trainer.benchmark.calibration import Measured
from lfmri_trainer.benchmark.calibration_tables import calibration_csv, calibration_sections
from lfmri_trainer.benchmark.consistency import Checked, consistency_csv, consistency_section
from lfmri_trainer.benchmark.figure import draw_figure
from lfmri_trainer.benchmark.fits import fits_section
from lfmri_trainer.benchmark.intervals import CONFIDENCE
from lfmri_trainer.benchmark.provenance import hashes
from lfmri_trainer.benchmark.run import SetResults
from lfmri_trainer.benchmark.tables import (
    difference_table,
    differences,
    differences_csv,
    level_of,
    markdown,
    score_table,
    scores_csv,
    subject_table,
)
from lfmri_trainer.benchmark.unaltered import Unaltered, unaltered_section
from lfmri_trainer.subjects import person_of

REPORT = "benchmark.md"
PAGE = "benchmark.html"
#: Names of subjects that a sentence holds.
MOST_NAMES = 10


def write_report(
    out: Path,
    every: Sequence[SetResults],
    methods: Sequence[Method],
    measured: Sequence[Measured],
    checked: Sequence[Checked],
    unaltered: Sequence[Unaltered],
    *,
    pairs: Path,
    bundle: Bundle,
    command: str,
) -> list[Path]:
    """Write benchmark.md, benchmark.html, the CSV files (those of checks where they were made) and a PNG for each set.

    Returns:
        the files, the page last.
    """
    title = f"Benchmark of {bundle.contract.name} {bundle.contract.version}"
    sections = [Section(heading="How it was made", paragraphs=_rules(bundle, command, made_by(every, methods)))]
    found, pictures = [], {}
    for results in every:
        compared = differences(results, methods)
        found += compared
        name = results.test_set.name
        picture = pictures[f"{name.lower()}.png"] = draw_figure(results, methods)
        level = level_of(results)
        sections += [
            Section(heading=f"{name}: scores", paragraphs=(describe(results),), table=score_table(results, methods)),
            Section(
                heading=f"{name}: paired differences",
                paragraphs=(
                    f"Mean difference and its {CONFIDENCE:.0%} interval, strong where it excludes zero. {level.covers}",
                ),
                table=difference_table(compared),
            ),
            Section(heading=f"{name}: reconstructions and absolute errors", picture=picture),
            *_subjects(results, methods),
        ]
    sections += [
        *calibration_sections(bundle, measured),
        *consistency_section(checked),
        *unaltered_section(unaltered),
        *fits_section(methods),
        _notes(methods),
        _data(hashes(pairs, bundle, every)),
    ]
    texts = {
        REPORT: _markdown(title, sections, list(pictures)),
        "scores.csv": scores_csv(every, methods),
        "differences.csv": differences_csv(found),
    }
    if measured:
        texts["calibration.csv"] = calibration_csv(measured)
    if checked:
        texts["consistency.csv"] = consistency_csv(checked)
    for name, text in texts.items():
        write_text(out / name, text)
    for name, content in pictures.items():
        with atomic_write(out / name) as temporary:
            temporary.write_bytes(content)
    write_article(out / PAGE, title=title, sections=sections)
    return [out / name for name in (*texts, *pictures, PAGE)]


def describe(results: SetResults) -> str:
    """Say what a set holds, and whether that is less than was asked for."""
    pairs = [scan.pair for scan in results.scans]
    count = sum(len(result.indices) for result in next(iter(results.results.values())))
    asked = results.test_set.slices
    fewer = f" of {asked} asked for (shared out evenly, and some of the pairs hold no more)" if count < asked else ""
    subjects = sorted({person_of(pair.subject) for pair in pairs})
    named = f" ({', '.join(subjects)})" if len(subjects) <= MOST_NAMES else ""
    axes = ", ".join(axis for axis in AXES if axis in {pair.thick_axis for pair in pairs})
    gaps = ", ".join(f"{spacing:g}" for spacing in sorted({pair.spacing for pair in pairs}))
    spans = [
        f"{name} {min(values):.1f} to {max(values):.1f}"
        for name, values in (
            ("SNR of white matter", [pair.snr_wm for pair in pairs]),
            ("of grey matter", [pair.snr_gm for pair in pairs]),
            ("Mahalanobis distance", [pair.distance for pair in pairs]),
        )
    ]
    return (
        f"{count} slice pairs{fewer} from {len(pairs)} scan{'s' if len(pairs) > 1 else ''} of {len(subjects)} unseen "
        f"subject{'s' if len(subjects) > 1 else ''}{named}, preset {results.test_set.preset} (its distribution is "
        f"assumed), thick axis {axes}, slices every {gaps} mm; {', '.join(spans)}. Strong: the best mean."
    )


def made_by(every: Sequence[SetResults], methods: Sequence[Method]) -> str:
    """Commit and machine of every result: of all, or of which methods."""
    found: dict[str, list[str]] = {}
    for method in methods:
        for made in sorted({result.made for results in every for result in results.results[method.key]}):
            found.setdefault(made or "not kept", []).append(method.title)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{made} ({', '.join(titles)})" for made, titles in found.items())


def _rules(bundle: Bundle, command: str, made: str) -> tuple[str, ...]:
    return (
        f"Command: {command}",
        f"Commit and machine of the scores and seconds: {made}. The proposed model runs in the runtime, the networks "
        "of other methods in PyTorch.",
        "Every method is given the same interpolated scan and is clipped to the standard scale; the reference is the "
        f"high-field slice on that scale, data range 1. {RULE} {Lpips.name}.",
        f"{bundle.contract.name} was trained on {', '.join(bundle.contract.training.get('training_subjects', ()))}.",
    )


def _subjects(results: SetResults, methods: Sequence[Method]) -> list[Section]:
    """One subject differs from the next; nothing where there is one alone, or no proposed model."""
    proposed = [method for method in methods if method.proposed]
    if len({scan.pair.subject for scan in results.scans}) < 2 or not proposed:
        return []
    said = f"Means over the slices of each subject, interpolation → {proposed[0].title}."
    heading = f"{results.test_set.name}: by subject"
    return [Section(heading=heading, paragraphs=(said,), table=subject_table(results, methods))]


def _notes(methods: Sequence[Method]) -> Section:
    """What a reader must know of the methods, each said once."""
    notes = {method.note: method.title for method in reversed(methods) if method.note}
    return Section(heading="Methods", paragraphs=tuple(f"{title}: {note}" for note, title in reversed(notes.items())))


def _data(found: Sequence[tuple[str, str]]) -> Section:
    rows = tuple(((name, False), (digits, False)) for name, digits in found)
    return Section(heading="Data", table=Table(head=("file", "SHA-256"), rows=rows))


def _markdown(title: str, sections: Sequence[Section], pictures: list[str]) -> str:
    names = iter(pictures)
    parts = [f"# {title}\n"]
    for section in sections:
        parts += [f"## {section.heading}\n", *(f"{paragraph}\n" for paragraph in section.paragraphs)]
        if section.table is not None:
            parts.append(markdown(section.table))
        if section.picture is not None:
            parts.append(f"![{section.heading}]({next(names)})\n")
    return "\n".join(parts)
