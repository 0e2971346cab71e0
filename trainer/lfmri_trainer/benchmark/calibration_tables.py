"""The calibration of the bundle's uncertainty as sections of the report and as CSV."""

from collections.abc import Iterator, Sequence

from lfmri_runtime.bundle import Bundle
from lfmri_runtime.page.article import Section, Table
from lfmri_trainer.benchmark.calibration import BINS, BY_SCAN, LEVELS, Measured
from lfmri_trainer.benchmark.tables import csv_text


def calibration_sections(bundle: Bundle, measured: Sequence[Measured]) -> list[Section]:
    """Two tables for each set."""
    sections = []
    for name in dict.fromkeys(m.set_name for m in measured):
        own = [m for m in measured if m.set_name == name]
        text = (
            f"{own[0].voxels:,} voxels with signal of {len(own[0].scans)} scan{'s' if len(own[0].scans) > 1 else ''}, "
            f"{own[0].samples} samples each, on the lines where slices of both planes cross. An interval is the mean "
            "of the samples +- the normal quantile times the predicted deviation, which is the standard deviation over "
            "samples times the contract's scale."
        )
        sections += [
            Section(
                heading=f"{name}: calibration",
                paragraphs=(text, *_by_scan(own), *_uncalibrated(bundle, own)),
                table=_coverages(own),
            ),
            Section(
                heading=f"{name}: error against predicted deviation",
                paragraphs=("Tenths of the voxels by predicted deviation; root mean squares on the standard scale.",),
                table=_bins(own),
            ),
        ]
    return sections


def calibration_csv(measured: Sequence[Measured]) -> str:
    """One line a set, number of steps and interval or bin: what was predicted and what was found."""
    lines: list[list[object]] = []
    for m in measured:
        about = [m.set_name, m.steps, m.samples, 1 if m.scale is None else m.scale]
        lines += [[*about, "coverage", level, repr(share)] for level, share in m.coverage.items()]
        lines += [[*about, f"coverage of {scan}", BY_SCAN, repr(share)] for scan, share in m.scans.items()]
        lines += [[*about, "deviation", repr(predicted), repr(error)] for predicted, error in m.bins]
        lines.append([*about, "rank correlation", 1, repr(m.correlation)])
    return csv_text(["set", "steps", "samples", "scale", "measure", "predicted", "found"], lines)


def _by_scan(measured: Sequence[Measured]) -> Iterator[str]:
    for m in measured:
        shares = ", ".join(f"{scan} {share:.0%}" for scan, share in m.scans.items())
        yield f"Truth in the {BY_SCAN:.0%} interval by scan, {m.steps} steps: {shares}."


def _uncalibrated(bundle: Bundle, measured: Sequence[Measured]) -> Iterator[str]:
    bare = ", ".join(str(m.steps) for m in measured if m.scale is None)
    if bare:
        yield f"{bundle.contract.name} has no calibration for {bare} steps: the bare deviation is judged, scale 1."


def _coverages(measured: Sequence[Measured]) -> Table:
    rows = [
        (
            (str(m.steps), False),
            ("1 (bare)" if m.scale is None else f"{m.scale:.2f}", False),
            *((f"{share:.1%}", False) for share in m.coverage.values()),
            (f"{m.correlation:.2f}", False),
        )
        for m in measured
    ]
    levels = [f"truth in {level:.0%} interval" for level in LEVELS]
    return Table(head=("Euler steps", "scale", *levels, "rank correlation"), rows=tuple(rows))


def _bins(measured: Sequence[Measured]) -> Table:
    head = [f"{what}, {m.steps} steps" for m in measured for what in ("predicted", "error")]
    rows = [
        ((str(n + 1), False), *((f"{value:.4f}", False) for m in measured for value in m.bins[n])) for n in range(BINS)
    ]
    return Table(head=("tenth", *head), rows=tuple(rows))
