"""The pictures of docs/lowfield.md; docs/lowfield.py calls this."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Array = NDArray[np.float32]

#: Millimetres shown of each head, front to back and side to side, and screen pixels of one.
HEIGHT, WIDTH, ZOOM = 202, 176, 1.5
#: Times the white matter's mean, shown as white.
WHITE = 1.6
#: Grey levels, and colours of the picture with boxes: fewer make smaller files.
LEVELS = 64
COLOURS = {"white_matter": "yellow", "lesion": "red", "surround": "lime", "edge": "cyan"}


def draw(pictures: dict[str, list[tuple[Array, Any, float]]], folder: Path) -> None:
    """Write lowfield-slices.png, a row for each patient, and lowfield-boxes.png, which shows where was measured.

    Args:
        pictures: by patient: axial slice (i, j), its boxes and voxel size in mm, of the input, the results and 3 T.
        folder: where to write.
    """
    rows = [[_panel(*panel) for panel in row] for row in pictures.values()]
    slices = _joined(rows).convert("L").point(lambda grey: grey * LEVELS // 256 * 256 // LEVELS)
    slices.save(folder / "lowfield-slices.png", optimize=True)
    marked = [[_panel(*panel, marked=True) for panel in (row[0], row[-1])] for row in pictures.values()]
    few = _joined(marked).quantize(2 * LEVELS, method=Image.Quantize.MAXCOVERAGE)
    few.save(folder / "lowfield-boxes.png", optimize=True)


def _panel(image: Array, boxes: Any, spacing: float, *, marked: bool = False) -> Image.Image:
    """One slice, front up, the head in the middle, white matter at the same grey on all."""
    i0, i1, j0, j1 = boxes.white_matter
    shown = np.clip(image / (image[i0:i1, j0:j1].mean() * WHITE), 0, 1)
    panel = Image.fromarray((shown * 255).astype(np.uint8)).convert("RGB")
    scale = spacing * ZOOM
    panel = panel.resize((round(panel.width * scale), round(panel.height * scale)), Image.Resampling.BICUBIC)
    if marked:
        pen = ImageDraw.Draw(panel)
        for name, colour in COLOURS.items():
            i0, i1, j0, j1 = getattr(boxes, name)
            pen.rectangle([j0 * scale, i0 * scale, j1 * scale, i1 * scale], outline=colour)
    head = np.argwhere(image > image.mean())
    middle = (np.percentile(head, 1, axis=0) + np.percentile(head, 99, axis=0)) / 2 * scale
    left, top = round(middle[1] - WIDTH * ZOOM / 2), round(middle[0] - HEIGHT * ZOOM / 2)
    return panel.crop((left, top, left + round(WIDTH * ZOOM), top + round(HEIGHT * ZOOM)))


def _joined(rows: list[list[Image.Image]]) -> Image.Image:
    """Panels on one canvas, the row's letter in its corner."""
    width, height = rows[0][0].size
    canvas = Image.new("RGB", (width * len(rows[0]), height * len(rows)))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=20)
    for number, row in enumerate(rows):
        for column, panel in enumerate(row):
            canvas.paste(panel, (column * width, number * height))
        pen.text((8, number * height + 6), "ABC"[number], fill="white", font=font)
    return canvas
