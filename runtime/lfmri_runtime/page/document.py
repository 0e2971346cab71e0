"""The page that shows volumes side by side; whatever comes from outside is escaped."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_runtime.evaluation import Evaluation
from lfmri_runtime.evaluation.scores import PLANES as AXIS_PLANES
from lfmri_runtime.evaluation.tables import column_label, shared_columns, summary_cell
from lfmri_runtime.page.frame import FOLDER, write_frame
from lfmri_runtime.page.pictures import COLOURS, Kind, Panel, Pictures, Window, draw, find_windows

_LEGENDS: dict[Kind, str] = {"image": "Intensity", "error": "Absolute error", "uncertainty": "Uncertainty (std)"}


def write_page(
    path: Path,
    *,
    title: str,
    volumes: Sequence[Panel],
    voxel_size: Sequence[float],
    first: Sequence[int] = (0, 0, 0),
    whole: Sequence[int] | None = None,
    figures: Mapping[str, Evaluation] | None = None,
    settings: Mapping[str, object] | None = None,
) -> None:
    """Write a page that shows volumes side by side in three planes, whole or not at all.

    Args:
        path: The HTML file to write; about 15 MB at most.
        title: The page's heading.
        volumes: What to show, from left to right; all on one grid in RAS voxel order.
        voxel_size: Edge lengths of a voxel along the three voxel axes, in mm.
        first: Index of the volumes' first voxel in the volume that they were cut out of, where slices are counted.
        whole: Shape of that volume; None where nothing was cut off.
        figures: Scores by method name; their table is left out without them.
        settings: What was run, by name (bundle, steps, seed, back end, ...); left out without them.

    Raises:
        UsageError: There is no volume, or the figures cannot stand side by side.
        InputRefused: Grids that differ, values that are not finite, or voxel sizes that are not three positive numbers.
        BackendMissing: Pillow is not installed.
        TryAgainLater: As `files.atomic_write`.
    """
    _check(volumes, voxel_size)
    windows = find_windows(volumes)
    drawn = draw(volumes, windows)
    content = Template((FOLDER / "comparison.html").read_text(encoding="utf-8")).substitute(
        legends="\n".join(_legend(kind, window) for kind, window in windows.items()),
        stride=drawn[0].stride,
        planes="\n".join(
            _plane(pictures, volumes, voxel_size, first, whole or volumes[0].volume.shape) for pictures in drawn
        ),
        figures=_figures(figures) if figures else "",
        settings=_settings(settings) if settings else "",
    )
    write_frame(
        path,
        title=title,
        content=content,
        data=json.dumps([pictures.jpegs for pictures in drawn], separators=(",", ":")),
        script=(FOLDER / "script.js").read_text(encoding="utf-8"),
    )


def _legend(kind: Kind, window: Window) -> str:
    """A colour bar with its lowest, middle and highest value."""
    low, high = window
    ticks = "".join(f"<span>{value:.3g}</span>" for value in (low, (low + high) / 2, high))
    return (
        f'<div class="legend"><span class="name">{_LEGENDS[kind]}</span>'
        f'<div><div class="bar" style="background:linear-gradient(to right,{COLOURS[kind].replace(" ", ",")})"></div>'
        f'<div class="ticks">{ticks}</div></div></div>'
    )


def _plane(
    pictures: Pictures, panels: Sequence[Panel], voxel_size: Sequence[float], first: Sequence[int], whole: Sequence[int]
) -> str:
    """One section: heading, slider, a picture per panel; the middle slice is there before the script runs."""
    plane = pictures.plane
    shape, step, length = panels[0].volume.shape, voxel_size[plane.axis], whole[plane.axis]
    indices = [first[plane.axis] + index for index in pictures.indices]
    ratio = (
        shape[plane.column_axis] * voxel_size[plane.column_axis] / (shape[plane.row_axis] * voxel_size[plane.row_axis])
    )
    middle = pictures.indices.index(shape[plane.axis] // 2)
    state = f"slice {indices[middle] + 1} of {length}"
    shown = "".join(
        f'<figure><figcaption>{escape(panel.name)}</figcaption><div class="picture" style="aspect-ratio:{ratio:.4f}">'
        f'<img src="data:image/jpeg;base64,{jpegs[middle]}" alt="{escape(panel.name)}, {plane.name.lower()} {state}" '
        f'data-name="{escape(panel.name)}"><i class="top">{plane.top}</i><i class="bottom">{plane.bottom}</i>'
        f'<i class="left">{plane.left}</i><i class="right">{plane.right}</i></div></figure>'
        for panel, jpegs in zip(panels, pictures.jpegs, strict=True)
    )
    key = plane.name.lower()
    return (
        f'<section class="plane" data-plane="{key}" data-length="{length}" data-step="{step:g}" '
        f'data-origin="{plane.origin}" data-indices="{json.dumps(indices)}">'
        f'<div class="head"><h2><label for="{key}">{plane.name}</label></h2>'
        f'<input type="range" id="{key}" min="0" max="{len(indices) - 1}" value="{middle}" step="1" '
        f'aria-describedby="keys"><output for="{key}">{state}</output></div>'
        f'<div class="row" style="--count:{len(panels)}">{shown}</div></section>'
    )


def _figures(figures: Mapping[str, Evaluation]) -> str:
    """The scores, a row per method; the best mean of a column is strong where there are several methods."""
    columns = shared_columns(figures)
    first = next(iter(figures.values()))
    head = "".join(f'<th scope="col">{escape(column_label(column))}</th>' for column in columns)
    best = {
        column.key: (max if column.higher_is_better else min)(e.summary[column.key].mean for e in figures.values())
        for column in columns
    }
    rows = ""
    for method, evaluation in figures.items():
        rows += f'<tr><th scope="row">{escape(method)}</th>'
        for column in columns:
            summary = evaluation.summary[column.key]
            cell = escape(summary_cell(column, summary))
            leads = len(figures) > 1 and summary.mean == best[column.key]
            rows += f"<td><strong>{cell}</strong></td>" if leads else f"<td>{cell}</td>"
        rows += "</tr>"
    lpips = f" {first.lpips}." if first.lpips else ""
    note = f"{len(first.rows)} {AXIS_PLANES[first.axis]} slices. {first.rule}{lpips}"
    return (
        '<section><h2>Figures</h2><div class="scroll" tabindex="0" role="region" aria-label="Figures"><table>'
        f'<thead><tr><th scope="col">Method</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="note">{escape(note)}</p></section>'
    )


def _settings(settings: Mapping[str, object]) -> str:
    items = "".join(f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>" for k, v in settings.items())
    return f"<section><h2>Settings</h2><dl>{items}</dl></section>"


def _check(volumes: Sequence[Panel], voxel_size: Sequence[float]) -> None:
    if not volumes:
        raise UsageError("no volume was given; a page shows at least one")
    sizes = np.asarray(voxel_size, np.float64)
    if sizes.shape != (3,) or not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise InputRefused(f"voxel sizes {tuple(voxel_size)} were given; expected three positive numbers in mm")
    for panel in volumes:
        shape = panel.volume.shape
        if len(shape) != 3 or shape != volumes[0].volume.shape or not panel.volume.size:
            raise InputRefused(
                f"{panel.name} has shape {shape} and {volumes[0].name} {volumes[0].volume.shape}; "
                "expected one 3-D grid: resample them alike"
            )
        if not np.isfinite(panel.volume).all():
            raise InputRefused(f"{panel.name} holds values that are not finite; a page shows finite ones: replace them")
