"""The figure of a set: reconstructions in one row, their absolute errors in the next (the paper's Figures 4 and 5)."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lfmri_runtime.page.pictures import colour_table
from lfmri_trainer.baselines.method import Float32Array, Method
from lfmri_trainer.benchmark.run import SetResults
from lfmri_trainer.flow import SIGNAL

#: Width of a picture and height of a line of text, screen pixels.
WIDTH = 220
LINE = 34
GAP = 6
#: The error that is shown as the last colour; one for all sets, so that InD and OOD can be compared.
LARGEST_ERROR = 0.4
#: Pixels of air that are shown round the head.
MARGIN = 6


def draw_figure(results: SetResults, methods: Sequence[Method]) -> bytes:
    """Draw the middle slice of the set's first scan as a PNG."""
    head = _box(results.scans[0].picture)
    reference = results.scans[0].picture[head]
    images = [("reference", reference), *((m.title, results.results[m.key][0].picture[head]) for m in methods)]
    grey, magma = colour_table("image"), colour_table("error")
    height = round(WIDTH * reference.shape[0] / reference.shape[1])
    sheet = Image.new("RGB", ((WIDTH + GAP) * len(images) - GAP, LINE + 2 * (height + GAP) - GAP), "black")
    pen = ImageDraw.Draw(sheet)
    for column, (title, picture) in enumerate(images):
        left = column * (WIDTH + GAP)
        pen.text((left + WIDTH / 2, LINE / 2), title, font=_font(pen, title), fill="white", anchor="mm")
        sheet.paste(_tile(picture, 1.0, grey, height), (left, LINE))
        if column:
            error = np.abs(picture - reference)
            sheet.paste(_tile(error, LARGEST_ERROR, magma, height), (left, LINE + height + GAP))
    _scale(sheet, pen, magma, top=LINE + height + GAP, height=height)
    stream = io.BytesIO()
    sheet.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _box(reference: Float32Array) -> tuple[slice, ...]:
    """Where the head is, and a margin; the whole picture where there is none."""
    places = np.argwhere(reference > SIGNAL)
    if not len(places):
        return (slice(None), slice(None))
    starts, stops = places.min(axis=0) - MARGIN, places.max(axis=0) + 1 + MARGIN
    return tuple(slice(max(int(a), 0), int(b)) for a, b in zip(starts, stops, strict=True))


def _tile(picture: Float32Array, white: float, colours: NDArray[np.uint8], height: int) -> Image.Image:
    """A slice against both its axes: with the thick axis S, superior up and right on the left, as in radiology."""
    levels = np.rint(np.clip(picture[::-1, ::-1] / white, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(colours[levels]).resize((WIDTH, height), Image.Resampling.BICUBIC)


def _scale(sheet: Image.Image, pen: Any, colours: NDArray[np.uint8], *, top: int, height: int) -> None:
    """The colour bar of the errors, below the reference."""
    steps = np.linspace(0, 255, WIDTH - 40).astype(np.uint8)
    bar = Image.fromarray(np.broadcast_to(colours[steps], (14, len(steps), 3)).copy())
    middle = top + height // 2
    sheet.paste(bar, (20, middle))
    pen.text((WIDTH / 2, middle - 16), "absolute error", font=ImageFont.load_default(14), fill="white", anchor="mm")
    for place, value in ((20, 0.0), (WIDTH - 20, LARGEST_ERROR)):
        pen.text((place, middle + 26), f"{value:g}", font=ImageFont.load_default(13), fill="white", anchor="mm")


def _font(pen: Any, title: str) -> Any:
    """The largest font in which the title fits its column."""
    for size in range(15, 7, -1):
        font = ImageFont.load_default(size)
        if pen.textlength(title, font=font) <= WIDTH:
            break
    return font
